"""Items that a catalogue lacks, read as `prepare` reads those of the catalogue file.

Vocabularies of categories, numbers of values and scales of vectors are not kept in prepared data:
they are made again from the catalogue file, which therefore must have the items that were prepared.

Letters: n items of the catalogue, m new ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.catalogue import (
    Catalogue,
    ItemLookup,
    Ragged,
    category_codes,
    encode_categories,
    encode_several,
    published_ms,
    ragged,
    value_codes,
    values_of,
)
from mtrec_ray.data.columns import as_text, blank, finite_floats
from mtrec_ray.data.end_states import CatalogueColumns
from mtrec_ray.data.preparing.inputs import read_items
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.data.tokens import item_texts, load_tokenizer, tokenise
from mtrec_ray.data.vectors import VectorScale, fit_scale, vector_blocks, vector_lists
from mtrec_ray.project.base import ProjectError, refuse, shorten
from mtrec_ray.project.items import Items
from mtrec_ray.project.project import Project
from mtrec_ray.serving.json_values import converts, read_value

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class NewItems:
    """New items as the model reads them.

    Attributes:
        catalogue: their texts, categories and numbers, as those of a catalogue.
        columns: what a snapshot needs of them.
    """

    catalogue: Catalogue
    columns: CatalogueColumns


class NewItemReader:
    """Reads new items of a scenario.

    Attributes:
        vocabularies: by column with categories or several values.
        numbers: by column that has statistics, the number of each value.
        scales: by column of vectors.
    """

    def __init__(self, project: Project, layout: SnapshotColumns, known: CatalogueColumns) -> None:
        """Read the catalogue file of a project.

        Raises:
            ProjectError: it cannot be read, or has other items than were prepared.
        """
        self.layout, self.items = layout, layout.scenario.items
        self.encoder = project.model.encoder
        table = same_items(read_items(project, layout.name), self.items, known)
        path = storage.join(layout.prepared.folder, layout.name, "catalogue.parquet")
        train_rows = storage.read_table(path, ["train_rows"]).column(0).to_numpy()
        self.types = {field.name: field.type for field in table.schema}
        self.vocabularies = {
            c: encode_categories(table.column(c), train_rows)[1] for c in self.items.categorical
        } | {
            c: encode_several(table.column(c), separator, train_rows)[1]
            for c, separator in self.items.several.items()
        }
        self.numbers = {
            c: numbers_of_values(as_text(table.column(c)), category_codes(table.column(c)))
            for c in self.items.statistics_columns
        } | {
            c: numbers_of_several(table.column(c), separator)
            for c, separator in self.items.pooled_columns.items()
        }
        self.scales = {
            c: fit_scale(vector_lists(table.column(c)), train_rows > 0) for c in self.items.vectors
        }
        refuse(list(self._changes(table, known)))

    def _changes(self, table: pa.Table, known: CatalogueColumns) -> Sequence[str]:
        """Returns a line for each column whose values are others than were prepared."""
        same = {c: category_codes(table.column(c)) for c in self.items.statistics_columns}
        return [
            f"catalogue: found other values of {c} than were prepared; allowed: the same file"
            for c, code in same.items()
            if not np.array_equal(code, known.codes[c])
        ]

    @property
    def named(self) -> list[str]:
        """The columns that a new item may have."""
        return [name for name in self.types if name != self.items.id]

    def problems(self, columns: Columns) -> list[str]:
        """Returns a line for each mistake in the columns of a new item."""
        allowed = ", ".join(self.named)
        lines = [
            f"{name}: found an unknown column; allowed: {allowed}"
            for name in columns
            if name not in self.named
        ]
        if all(columns.get(name) is None for name in self.items.text_columns):
            texts = ", ".join(self.items.text_columns)
            lines.append(f"{texts}: found no text; allowed: at least one of them")
        for name, value in columns.items():
            kind = self.types.get(name)
            if name in self.named and kind is not None and not converts(value, kind):
                lines.append(f"{name}: found {shorten(value)}; allowed: a value of type {kind}")
        return lines

    def read(self, new: Sequence[tuple[str, Columns]]) -> NewItems:
        """Returns new items of ids and columns that have no mistake."""
        table = pa.table(
            {
                name: pa.chunked_array([read_value(columns.get(name), kind) for _, columns in new])
                for name, kind in self.types.items()
                if name != self.items.id
            }
        )
        for name, values in self.items.missing.items():
            if name in table.column_names and name not in self.items.vectors:
                number = table.column_names.index(name)
                table = table.set_column(number, name, blank(table.column(name), values))
        published = published_ms(table, self.items, self.layout.scenario.events.time_unit)
        columns = CatalogueColumns(
            ids=np.array([name for name, _ in new], object),
            in_training=np.zeros(len(new), bool),
            codes={c: self._codes(table, c) for c in self.items.statistics_columns},
            published=published,
            values={c: self._values(table, c) for c in self.items.pooled_columns},
        )
        return NewItems(self._catalogue(table, published), columns)

    def _catalogue(self, table: pa.Table, published: Ints) -> Catalogue:
        items, num = self.items, table.num_rows
        tokens = tokenise(
            load_tokenizer(self.encoder.source), item_texts(table, items), self.encoder.max_tokens
        )
        none = np.zeros(num, np.int64)
        codes = [
            encode_categories(table.column(c), none, self.vocabularies[c])[0]
            for c in items.categorical
        ]
        several = [
            encode_several(table.column(c), separator, none, self.vocabularies[c])[0]
            for c, separator in items.several.items()
        ]
        return Catalogue(
            tokens=np.concatenate(tokens),
            offsets=np.concatenate([[0], np.cumsum([len(own) for own in tokens])]),
            categorical=matrix_of(codes, num, np.int32),
            numeric=matrix_of([finite_floats(table.column(c)) for c in items.numeric], num, "f4"),
            published=published,
            known=np.zeros(num, bool),
            several=tuple(ragged(pa.chunked_array([own])) for own in several),
            vectors=tuple(standard(table.column(c), self.scales[c]) for c in items.vectors),
        )

    def _codes(self, table: pa.Table, column: str) -> Ints:
        """Returns i64[m]: numbers of values; -1 for null, one that no item has for other values."""
        numbers = self.numbers[column]
        texts = as_text(table.column(column)).to_pylist()
        return np.array(
            [-1 if text is None else numbers.get(text, len(numbers)) for text in texts], np.int64
        )

    def _values(self, table: pa.Table, column: str) -> Ragged:
        """Returns the numbers of several values, without those that no item has."""
        numbers = self.numbers[column]
        rows, texts = values_of(table.column(column), self.items.pooled_columns[column])
        known = np.array([text in numbers for text in texts], bool)
        rows = rows[known]
        codes = np.array([numbers[text] for text in texts[known]], np.int32)
        offsets = np.searchsorted(rows, np.arange(table.num_rows + 1))
        return Ragged(codes[np.lexsort([codes, rows])], offsets)


def same_items(table: pa.Table, items: Items, known: CatalogueColumns) -> pa.Table:
    """Returns the rows of a catalogue file in the order of the prepared items.

    Raises:
        ProjectError: it lacks one of them.
    """
    ids = pa.chunked_array([pa.array(known.ids, pa.string())])
    row = ItemLookup.of(table.column(items.id)).find(ids)
    if (row < 0).any():
        lacks = shorten(known.ids[int(np.argmax(row < 0))])
        raise ProjectError([f"catalogue: found no item {lacks}; allowed: all that were prepared"])
    return table.take(pa.array(row))


def numbers_of_values(texts: pa.ChunkedArray, codes: Ints) -> dict[str, int]:
    """Returns the number of each value of a column, from the codes i64[n] of its items."""
    return {text: code for text, code in zip(texts.to_pylist(), codes.tolist(), strict=True)
            if code >= 0}  # fmt: skip


def numbers_of_several(column: pa.ChunkedArray, separator: str | None) -> dict[str, int]:
    """Returns the number of each value of a column with several, as `value_codes` gives them."""
    assert len(value_codes(column, separator).offsets) == len(column) + 1
    _, texts = values_of(column, separator)
    codes, uniques = pd.factorize(texts, sort=False)
    assert codes.max(initial=-1) == len(uniques) - 1
    return {str(text): code + 1 for code, text in enumerate(uniques)}


def matrix_of(columns: Sequence[np.ndarray], num: int, kind: Any) -> np.ndarray:
    """Returns [m, C] of columns [m]; [m, 0] without any."""
    return np.stack(columns, 1).astype(kind) if columns else np.zeros((num, 0), kind)


def standard(column: pa.ChunkedArray, scale: VectorScale | None) -> np.ndarray:
    """Returns f16[m, D]: standardised vectors, NaN where there is none."""
    assert scale is not None
    blocks = [scale.of(block) for block in vector_blocks(column, len(scale.mean))]
    return np.concatenate(blocks).astype(np.float16)
