"""The program `imletriton`, also as `python -m imletriton`: the command line, which Ctrl-C ends with a sentence."""

from imletriton.system.stopping import ctrl_c


def main() -> None:
    """Run the command line; see `imletriton.cli.main`."""
    ctrl_c.install()  # before anything is imported that takes time
    from imletriton.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
