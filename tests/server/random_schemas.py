"""Schemas drawn at random, of what grammars can keep to: every one has short answers."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

PATTERNS = ("^[a-c]{1,4}$", "^(yes|no)$", "^[A-Z][a-z]{0,5}$", "^\\d{2}-\\d{2}$")
FORMATS = ("date", "time", "date-time", "ipv4", "uuid")
NAMES = ("a", "b", "name", "größe", "x y", "n°", "key-1", 'q"uote', "日")


class Drawer:
    def __init__(self, seed: int):
        self.choose = random.Random(seed)

    def schema(self) -> Schema:
        """One with `$defs`, some of which mention each other."""
        drawn = self.any(0)
        drawn["$defs"] = {"leaf": self.scalar(), "pair": {**self.array(2), "maxItems": 2}}
        return drawn

    def any(self, depth: int) -> Schema:
        kinds = [self.scalar] if depth > 2 else [self.scalar, lambda: self.object(depth), lambda: self.array(depth)]
        weights = [1] if depth > 2 else [2, 3, 2]
        draw = self.choose.random()
        if depth and draw < 0.08:
            return {"$ref": f"#/$defs/{self.choose.choice(('leaf', 'pair')) if depth < 2 else 'leaf'}"}
        if draw < 0.16:
            return {"anyOf": [self.any(depth + 1) for _ in range(self.choose.randint(2, 3))]}
        found: Schema = self.choose.choices(kinds, weights)[0]()
        return found

    def scalar(self) -> Schema:
        pick = self.choose
        low = pick.randint(-50, 50)
        drawn: Schema = pick.choice((
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": low, "maximum": low + pick.randint(0, 200)},
            {"type": "integer", "exclusiveMinimum": low, "maximum": low + pick.randint(1, 9)},
            {"type": "integer", "multipleOf": pick.choice((3, 5, 10)), "minimum": 0, "maximum": 1000},
            {"type": "number", "minimum": low, "maximum": low + pick.randint(1, 3)},
            {"type": "string", "maxLength": pick.randint(0, 8)},
            {"type": "string", "minLength": 2, "maxLength": 6},
            {"type": "string", "pattern": pick.choice(PATTERNS)},
            {"type": "string", "format": pick.choice(FORMATS)},
            {"enum": pick.sample(["red", 1, 2.5, None, True, "ü\n", [1], {"k": "v"}], pick.randint(1, 4))},
            {"const": pick.choice(["fixed", 0, False, [], {"a": [1]}])},
            {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
        ))  # fmt: skip
        return drawn

    def array(self, depth: int) -> Schema:
        least = self.choose.randint(0, 2)
        drawn = {"type": "array", "items": self.any(depth + 1), "minItems": least, "maxItems": least + 2}
        if self.choose.random() < 0.2:
            drawn["prefixItems"] = [self.any(depth + 1)]
        return drawn

    def object(self, depth: int) -> Schema:
        names = self.choose.sample(NAMES, self.choose.randint(1, 4))
        drawn: Schema = {
            "type": "object",
            "properties": {name: self.any(depth + 1) for name in names},
            "required": [name for name in names if self.choose.random() < 0.7],
        }
        if self.choose.random() < 0.5:
            drawn["additionalProperties"] = False
        if self.choose.random() < 0.3:
            drawn |= {"title": "A title", "description": "What it is for", "x-remark": 1}
        return drawn
