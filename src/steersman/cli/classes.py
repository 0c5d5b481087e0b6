"""``steersman classes``: what a classifier can be asked for."""

from typing import Annotated

from steersman.cli.options import argument, classifier_names, option
from steersman.cli.root import Terminal
from steersman.errors import unknown

__all__ = ["classes"]


def classes(
    search: Annotated[str | None, argument("Text in the names of the classes; without it, all are listed.")] = None,
    classifier: Annotated[
        str, option("Classifier, in the forms that sample takes.", known=classifier_names)
    ] = "imagenet:efficientnet-lite0",
) -> None:
    """List the classes of a classifier, each with its index and its names, any of which is a target.

    Example: steersman classes retriever
    """
    terminal = Terminal()
    with terminal.status("loading the classifier"):
        from steersman.models.classifiers import load_classifier
        from steersman.names import index_ranges, search_classes

        loaded = load_classifier(classifier)
    if loaded.open_vocabulary:
        return terminal.print(f"any text is a target of {classifier}")
    found, sets = range(len(loaded.names)), {}
    if search is not None:
        found, sets = search_classes(search, loaded.names)
        if not found and not sets:
            raise unknown("class", search, (title.strip() for name in loaded.names for title in name.split(",")))
    if found:
        terminal.table(("index", "class"), [(str(index), loaded.names[index]) for index in found], texts=2)
    if sets:
        rows = [(name, str(len(indices)), index_ranges(indices)) for name, indices in sets.items()]
        terminal.table(("WordNet's name for several", "classes", "indices"), rows, texts=3)
