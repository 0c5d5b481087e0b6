from steersman.cli.analyze import app as analyze
from steersman.cli.app import app, main
from steersman.cli.bench import EPILOG as BENCH
from steersman.cli.bench import bench
from steersman.cli.convert import EPILOG as CONVERT
from steersman.cli.convert import convert
from steersman.cli.data import app as data
from steersman.cli.evaluate import EPILOG as EVALUATE
from steersman.cli.evaluate import evaluate
from steersman.cli.recipes import app as recipes
from steersman.cli.report import EPILOG as REPORT
from steersman.cli.report import report
from steersman.cli.reproduce import EPILOG as REPRODUCE
from steersman.cli.reproduce import reproduce
from steersman.cli.sample import EPILOG, sample
from steersman.cli.sweep import EPILOG as SWEEP
from steersman.cli.sweep import sweep
from steersman.cli.train import app as train
from steersman.cli.tune import EPILOG as TUNE
from steersman.cli.tune import tune

app.command(epilog=EPILOG)(sample)
app.command(epilog=CONVERT)(convert)
app.command(epilog=SWEEP)(sweep)
app.command(epilog=TUNE)(tune)
app.command(epilog=BENCH)(bench)
app.command(epilog=REPORT)(report)
app.command(epilog=REPRODUCE)(reproduce)
app.command(epilog=EVALUATE)(evaluate)
app.add_typer(analyze, name="analyze")
app.add_typer(data, name="data")
app.add_typer(recipes, name="recipes")
app.add_typer(train, name="train")

__all__ = ["app", "main"]
