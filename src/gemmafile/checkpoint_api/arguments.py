"""What the arguments of `from_pretrained` ask for: a type of weights, 8 or 4 bits, a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gemmafile.checkpoint_api.in_memory import FLOATS, four_bits, reformat, reformatted_bytes
from gemmafile.checkpoint_api.sources import say
from gemmafile.convert.to_checkpoint import TORCH_NAMES
from gemmafile.errors import BadSettings, nearest
from gemmafile.files.formats import format_by_name
from gemmafile.files.gguf import ModelFile
from gemmafile.progress import Progress

FORMATS = {name: fmt for fmt, name in TORCH_NAMES.items()} | {"half": "F16", "float": "F32"}
"""Names of torch's types -> formats."""


@dataclass
class BitsAndBytesConfig:
    """Weights of 8 or 4 bits, made at load. Options of bitsandbytes' own formats are taken and change nothing."""

    load_in_8bit: bool = False
    load_in_4bit: bool = False

    def __init__(self, load_in_8bit: bool = False, load_in_4bit: bool = False, **ignored: Any):
        if load_in_8bit and load_in_4bit:
            raise BadSettings("load_in_8bit and load_in_4bit were both given: which one?")
        self.load_in_8bit, self.load_in_4bit = load_in_8bit, load_in_4bit


def read_bits(config: Any, in_8: bool, in_4: bool) -> int | None:
    if config is not None:
        read: Callable[[str], Any] = config.get if isinstance(config, Mapping) else lambda n: getattr(config, n, False)
        in_8, in_4 = bool(read("load_in_8bit")), bool(read("load_in_4bit"))
        if not in_8 and not in_4:
            raise BadSettings("quantization_config: expected load_in_8bit=True or load_in_4bit=True")
    if in_8 and in_4:
        raise BadSettings("8 and 4 bits were both asked for: which?")
    return 8 if in_8 else 4 if in_4 else None


def read_dtype(dtype: Any) -> str | None:
    if dtype is None or dtype == "auto":
        return None
    name = dtype.__name__ if isinstance(dtype, type) else str(dtype).rpartition(".")[2]
    if name not in FORMATS:
        raise BadSettings(
            f"dtype is {str(dtype)[:40]!r}{nearest(name, FORMATS)}: expected float32, float16 or bfloat16"
        )
    return FORMATS[name]


def check_devices(device_map: Any) -> None:
    """Says what cannot be had. Raises BadSettings for what is no device."""
    devices = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    for device in devices:
        name = getattr(device, "type", device)
        if name is None or isinstance(name, int) or (isinstance(name, str) and name.partition(":")[0] in _DEVICES):
            kind = "cuda" if isinstance(name, int) else _DEVICES.get(str(name).partition(":")[0], "cpu")
            if kind == "gpu" or isinstance(name, int):
                say(f"there is no GPU engine here: device {device!r} is asked for, and the CPU answers")
            continue
        raise BadSettings(
            f"the device {str(device)[:40]!r} is not known: auto, cpu, cuda, a number, or a table of these"
        )


_DEVICES = {
    **dict.fromkeys(("auto", "balanced", "balanced_low_0", "sequential", "cpu", "None"), "cpu"),
    **dict.fromkeys(("cuda", "mps", "xpu"), "gpu"),
}


def reformatted(file: ModelFile, bits: int | None, dtype: str | None) -> ModelFile:
    """The file with its matrices as asked for."""
    if bits is None and dtype is None:
        return file
    if not any(info.format.name in FLOATS for info in file.tensors.values() if len(info.shape) == 2):
        return file  # quantised already
    if bits == 4:
        choose, name = four_bits(file), "4-bit"
    else:
        wanted = format_by_name("Q8_0" if bits == 8 else dtype or "F32")
        choose, name = lambda info: wanted, wanted.name
    with Progress(f"making {name} weights", reformatted_bytes(file, choose), bytes=True) as progress:
        return reformat(file, choose, progress.advance)
