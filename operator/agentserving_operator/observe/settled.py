"""Objects that stay different from what we apply, because an admission webhook rewrites our fields each time.

A webhook that prefixes images with a mirror, or appends to a command, has the last word: applying again gives the same
object. Without this memory every visit of such a cluster would write. It is lost with the process, which costs one
write for each such object.
"""

from __future__ import annotations

import hashlib
import json

from agentserving_operator.manifests.common import Manifest
from agentserving_operator.observe.drift import matches

# More objects than one operator looks after; the oldest are forgotten first.
MAX_OBJECTS = 10_000
# Written by the API server or by controllers: no part of what anyone asked for.
_VOLATILE = ("resourceVersion", "managedFields", "generation", "creationTimestamp", "selfLink")


class Settled:
    """What objects looked like right after we applied them, where that was not as desired."""

    def __init__(self) -> None:
        # By the object's uid: digest of what we applied, digest of what came of it.
        self._after_apply: dict[str, tuple[str, str]] = {}

    def applied(self, desired: Manifest, result: Manifest) -> None:
        """Call with every object that was applied and the API server's response."""
        uid = str(result["metadata"]["uid"])
        if matches(desired, result):
            self._after_apply.pop(uid, None)
            return
        self._after_apply[uid] = (_digest(desired), _digest(result))
        if len(self._after_apply) > MAX_OBJECTS:
            del self._after_apply[next(iter(self._after_apply))]

    def is_settled(self, desired: Manifest, live: Manifest) -> bool:
        """Whether applying `desired` would give `live` again."""
        if matches(desired, live):
            return True
        known = self._after_apply.get(str(live["metadata"].get("uid", "")))
        return known is not None and known == (_digest(desired), _digest(live))

    def forget(self, live: Manifest) -> None:
        """The object was deleted."""
        self._after_apply.pop(str(live["metadata"].get("uid", "")), None)


def _digest(manifest: Manifest) -> str:
    wanted = {key: value for key, value in manifest.items() if key not in ("status", "metadata", "apiVersion", "kind")}
    wanted["metadata"] = {key: value for key, value in manifest["metadata"].items() if key not in _VOLATILE}
    return hashlib.sha256(json.dumps(wanted, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
