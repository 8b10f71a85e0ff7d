"""The encoder of a trained model as files that other libraries read, each compared with it.

Letters: m texts, L tokens, D width.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtrec_ray.data.arrays import Float32s
from mtrec_ray.data.tokens import TINY, load_tokenizer
from mtrec_ray.model.chunks import Texts, chunks
from mtrec_ray.model.encoder import pool
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.project.model import Encoder
from mtrec_ray.stages.exporting.int8_weights import compress_weights
from mtrec_ray.stages.exporting.onnx_file import export_onnx, onnx_session, quiet
from mtrec_ray.stages.exporting.parity import Parity
from mtrec_ray.stages.finetuning.recipe import plain_encoder
from mtrec_ray.stages.trained_model import TrainedModel, load_model_for_use
from mtrec_ray.training.item_vectors import ItemVectors

FORMATS: tuple[str, ...] = ("huggingface", "onnx", "onnx-int8", "openvino-int8")
SAMPLE = 256  # texts that are compared, at most
ONNX, XML = "encoder.onnx", "encoder.xml"
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "vector"

# Returns vectors [m, D] of token ids i64[m, L] and their mask i64[m, L].
Reader = Callable[[NDArray[np.int64], NDArray[np.int64]], Float32s]


class PooledEncoder(nn.Module):
    """The plain encoder, pooled as the model pools it."""

    def __init__(self, plain: nn.Module, pooling: str) -> None:
        super().__init__()
        self.plain, self.pooling = plain, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns f32[m, D] of token ids i64[m, L] and their mask i64[m, L]."""
        states = self.plain(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(states, attention_mask.bool(), self.pooling)


@dataclass(frozen=True)
class ReadTexts:
    """Texts, and what the trained encoder makes of them: vectors f32[m, D], in fp32."""

    texts: Texts
    vectors: Float32s

    def parity(self, read: Reader, budget: int) -> Mapping[str, Any]:
        """Returns how far another reader's vectors are from the trained encoder's."""
        found = np.zeros_like(self.vectors)
        for chunk in chunks(self.texts, np.arange(len(self.vectors)), budget):
            tokens = torch.where(chunk.mask, self.texts.tokens[chunk.index], 0)
            found[chunk.places] = read(tokens.numpy(), chunk.mask.numpy().astype(np.int64))
        return Parity.of(found, self.vectors).told()


class EncoderFiles:
    """Writes the encoder of a trained model; what takes long is done when it is first needed."""

    def __init__(self, trained_model: TrainedModel) -> None:
        project = trained_model.project
        evaluation = project.evaluation.model_copy(update={"precision": "fp32"})
        run = project.run.model_copy(update={"use_gpu": False})
        exact = project.model_copy(update={"evaluation": evaluation, "run": run})
        self.trained_model = replace(trained_model, project=exact)
        self.folder = tempfile.TemporaryDirectory()

    @property
    def options(self) -> Encoder:
        """The encoder's section of the project."""
        return self.trained_model.project.model.encoder

    @cached_property
    def _trained(self) -> tuple[Recommender, ItemVectors]:
        return load_model_for_use(self.trained_model)

    @cached_property
    def pooled(self) -> PooledEncoder:
        """The encoder with its adapters merged, and its pooling."""
        plain = plain_encoder(self.options, self._trained[0].state_dict())
        return PooledEncoder(plain, self.options.pooling).eval()

    @cached_property
    def sample(self) -> ReadTexts:
        """Texts of all scenarios' items, by the encoder as it was trained."""
        vectors = self._trained[1]
        places = spread(vectors.num_items)
        own = vectors.texts
        parts = [own.tokens[own.offsets[p] : own.offsets[p + 1]] for p in places]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        return ReadTexts(Texts(torch.cat(parts), offsets), self._read(places))

    @torch.no_grad()
    def _read(self, places: NDArray[np.int64]) -> Float32s:
        return self._trained[1].run(places).numpy()

    def items_parity(self, name: str, vectors: Float32s) -> Mapping[str, Any]:
        """Returns how far vectors f32[n, D] of a scenario's items are from the trained encoder's.

        Those of some of the items, in fp32.
        """
        rows = spread(len(vectors))
        wanted = self._read(rows + self._trained[1].bases[name])
        return Parity.of(vectors[rows], wanted).told()

    def _record(self, read: Reader, **told: Any) -> dict[str, Any]:
        parity = self.sample.parity(read, self.options.tokens_per_chunk)
        return {"parity": parity, "pooling": self.options.pooling, **told}

    @cached_property
    def onnx(self) -> Path:
        """The encoder as ONNX in fp32, in a folder for temporary files."""
        path = Path(self.folder.name) / ONNX
        tokens = torch.ones(2, 3, dtype=torch.int64)
        mask = torch.tensor(
            [[1, 1, 1], [1, 1, 0]]
        )  # of ones alone, transformers would leave it out
        inputs = dict(zip(INPUTS, (tokens, mask), strict=True))
        sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
        export_onnx(self.pooled, inputs, path, OUTPUT, dict.fromkeys(inputs, sizes))
        return path

    def write(self, kind: str, folder: Path) -> dict[str, Any]:
        """Writes the encoder in one of `FORMATS`; returns what its record tells."""
        writers = (
            self.write_huggingface, self.write_onnx, self.write_onnx_int8,
            self.write_openvino_int8,
        )  # fmt: skip
        return dict(zip(FORMATS, writers, strict=True))[kind](folder)

    def write_huggingface(self, folder: Path) -> dict[str, Any]:
        """Writes the encoder as a folder that transformers loads by itself."""
        from transformers import AutoModel

        plain: Any = self.pooled.plain
        plain.save_pretrained(folder)
        if self.options.source != TINY:
            load_tokenizer(self.options.source).save_pretrained(folder)
        loaded = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        return self._record(torch_reader(PooledEncoder(loaded, self.options.pooling)))

    def write_onnx(self, folder: Path) -> dict[str, Any]:
        """Writes the encoder as ONNX, in fp32."""
        path = folder / ONNX
        path.write_bytes(self.onnx.read_bytes())
        return self._record(onnx_reader(path))

    def write_onnx_int8(self, folder: Path) -> dict[str, Any]:
        """Writes the encoder as ONNX with linear maps in int8.

        Weights are scaled by output channel, activations by call at run time.
        """
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = folder / ONNX
        with quiet("root"):
            quantize_dynamic(
                self.onnx, path, per_channel=True, weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"],
            )  # fmt: skip
        return self._record(onnx_reader(path))

    def write_openvino_int8(self, folder: Path) -> dict[str, Any]:
        """Writes the encoder for OpenVINO, with weights of linear maps in int8.

        They are scaled by output channel. OpenVINO itself scales activations, by groups of a row,
        and multiplies in int8.
        """
        import openvino

        model = openvino.Core().read_model(self.onnx)
        told = compress_weights(model)
        openvino.save_model(model, folder / XML, compress_to_fp16=False)
        return self._record(openvino_reader(folder / XML), linear_maps_in_int8=told)


def spread(number: int) -> NDArray[np.int64]:
    """Returns rows i64[m] of so many, in equal distances."""
    return np.unique(np.linspace(0, number - 1, min(number, SAMPLE)).astype(np.int64))


def torch_reader(module: nn.Module) -> Reader:
    """Returns a reader of texts by a module of torch."""

    @torch.no_grad()
    def read(tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> Float32s:
        return module(torch.from_numpy(tokens), torch.from_numpy(mask)).numpy()

    return read


def onnx_reader(path: Path) -> Reader:
    """Returns a reader of texts by a file of ONNX."""
    session = onnx_session(path)
    return lambda *texts: session.run(None, dict(zip(INPUTS, texts, strict=True)))[0]


def openvino_reader(path: Path) -> Reader:
    """Returns a reader of texts by a file of OpenVINO."""
    import openvino

    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", threads)
    return lambda *texts: compiled(dict(zip(INPUTS, texts, strict=True)))[0]
