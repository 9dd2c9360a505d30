"""The program `imletriton`, also as `python -m imletriton`."""

from imletriton.system.stopping import ending


def main() -> None:
    """Run the command line, which signals end with a sentence; see `imletriton.cli.main`."""
    ending.install()  # before anything that takes time to import
    from imletriton.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
