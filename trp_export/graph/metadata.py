"""The metadata of a model file: remove what is private, add who made the file and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

import onnx_ir as ir

from trp_export.system.privacy import is_private, names_without_paths, without_paths

LICENCE_KEYS = ("licence", "license")
_LONGEST = 2000


def strip_traces(model: ir.Model) -> None:
    """Remove what exporters leave in a file: stack traces with local paths, scopes, doc strings, their own name.

    Entries of the model's own metadata stay, since apps read them, unless they hold something private.
    """
    model.producer_name = model.producer_version = model.domain = model.doc_string = None
    model.model_version = None
    for key, text in list(model.metadata_props.items()):
        if is_private(key) or is_private(text):
            del model.metadata_props[key]
    for graph in _graphs(model):
        graph.doc_string = None
        graph.metadata_props.clear()
        for node in graph:
            node.doc_string = None
            node.metadata_props.clear()
            for attribute in node.attributes.values():
                attribute.doc_string = None
    for value in _values(model):
        value.doc_string = None
        value.metadata_props.clear()


def name_without_paths(model: ir.Model) -> None:
    """Cut names that hold local paths to the last part. Names of inputs and outputs are the interface and stay."""
    interface = {*model.graph.inputs, *model.graph.outputs}
    values = [value for value in _values(model) if value not in interface]
    nodes = [node for graph in _graphs(model) for node in graph]
    names = [name for name in (*(value.name for value in values), *(node.name for node in nodes)) if name]
    short = names_without_paths(names, [name for graph in _graphs(model) for name in graph.initializers])
    taken = {value.name for value in _values(model)}
    for value in (value for value in values if value.name in short):
        value.name = _free(short[value.name or ""] or "value", taken)
        taken.add(value.name)
    for node in nodes:
        node.name = short.get(node.name or "", node.name)
    for graph in _graphs(model):
        graph.name = graph.name and without_paths(graph.name)


def sign(model: ir.Model, entries: Mapping[str, str]) -> None:
    """Name this program as the producer, and add entries to the metadata."""
    model.producer_name = "trp-export"
    try:
        model.producer_version = version("trp-export")
    except PackageNotFoundError:
        model.producer_version = None
    model.metadata_props.update({f"trp_export.{key}": text for key, text in entries.items()})


def licence(model: ir.Model) -> str | None:
    """The licence in a model's metadata, cut to 2,000 characters; None where it has none."""
    named = (text[:_LONGEST] for key, text in model.metadata_props.items() if key.lower() in LICENCE_KEYS)
    return next((text for text in named if text and not is_private(text)), None)


def _graphs(model: ir.Model) -> tuple[ir.Graph, ...]:
    return (model.graph, *model.graph.subgraphs())


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value once: inputs, initializers, outputs of nodes."""
    for graph in _graphs(model):
        yield from dict.fromkeys((*graph.inputs, *graph.initializers.values()))
        for node in graph:
            yield from node.outputs


def _free(name: str, taken: set[str | None]) -> str:
    number, free = 0, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
