"""LoRA adapters as llama.cpp's API knows them: which are in force, and what it would take to change that.

They are loaded with the model, scales and all, and what the cache holds was computed with them. So requests may name
the scales that are in force, and no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemmafile.server.errors import bad_request

if TYPE_CHECKING:
    from gemmafile.server.door import Door

FIXED = "adapters and their scales are set when the server is started: --lora FILE, --lora-scaled FILE:SCALE"


def adapters_in_force(door: Door) -> list[dict[str, Any]]:
    """llama.cpp's list: id, path and scale of each."""
    from gemmafile.model.adapters import parse_adapters

    context = door.client.arguments.get("context", {})
    pairs = parse_adapters(context.get("lora", []), context.get("lora_scaled", []))
    return [{"id": i, "path": path, "scale": scale} for i, (path, scale) in enumerate(pairs)]


def check_adapters(door: Door, wanted: Any) -> None:
    """Raises ApiError 400 for what is no list of adapters, or not what is in force.

    wanted  [{"id", "scale"}]; adapters that are not named would have scale 0
    """
    if not isinstance(wanted, list) or not all(_is_entry(entry) for entry in wanted):
        raise bad_request('lora: expected a list of {"id": 0, "scale": 1.0}', "lora")
    scales = {each["id"]: each["scale"] for each in adapters_in_force(door)}
    if unknown := [entry["id"] for entry in wanted if entry["id"] not in scales]:
        raise bad_request(f"lora: there is no adapter {unknown[0]}: this server has {len(scales)}", "lora")
    if {**dict.fromkeys(scales, 0.0), **{entry["id"]: entry["scale"] for entry in wanted}} != scales:
        raise bad_request(f"lora: {FIXED}", "lora")


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    number, scale = entry.get("id"), entry.get("scale")
    return type(number) is int and type(scale) in (int, float)
