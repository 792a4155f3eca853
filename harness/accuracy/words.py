"""A suspect in words. What finds it is harness.accuracy.suspects, which needs torch; a person's line does not."""

from __future__ import annotations

from typing import Any


def in_words(suspect: dict[str, Any]) -> str:
    """One line for a person."""
    match suspect["what"]:
        case "expert":
            return (
                f"expert {suspect['expert']} of layer {suspect['layer']}: KL {suspect['times']:.1f} times as large "
                f"where it is chosen"
            )
        case "routing":
            a, b = suspect["experts"]
            return (
                f"layer {suspect['layer']}: experts {a} and {b} exchanged by the router "
                f"({suspect['share']:.0%} of the tokens whose experts changed)"
            )
        case _:
            return f"token {suspect['token']}: its logit is off by {suspect['offset']:+.3f} everywhere"
