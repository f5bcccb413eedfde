"""`python -m app` is `kpayd`."""

from app.cli import main

main()
