"""``python -m scgalore`` is the command ``scgalore``."""

from scgalore.cli import app

if __name__ == "__main__":
    app(prog_name="scgalore")
