from steersman.cli.app import app, main
from steersman.cli.train import app as train

app.add_typer(train, name="train")

__all__ = ["app", "main"]
