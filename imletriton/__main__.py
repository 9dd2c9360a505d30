"""The program `imletriton`, also as `python -m imletriton`: the command line, which signals end with a sentence."""

from imletriton.system.stopping import ending


def main() -> None:
    """Run the command line; see `imletriton.cli.main`."""
    ending.install()  # before anything is imported that takes time
    from imletriton.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
