"""A client of the API server for tests: plain HTTP, raw responses."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from typing import Any

import httpx

CLUSTERS = "/apis/agentserving.io/v1alpha1/namespaces/{}/agentservingclusters"
TENANTS = "/apis/agentserving.io/v1alpha1/namespaces/{}/agentservingtenants"


def eventually(what: str, found: Callable[[], Any], bound_s: float = 60.0) -> Any:
    """The first true value of `found`. AssertionError with `what` when there is none in time."""
    deadline = time.monotonic() + bound_s
    while not (answer := found()):
        assert time.monotonic() < deadline, f"not in {bound_s:.0f} s: {what}"
        time.sleep(0.1)
    return answer


class Kube:
    """The API server, as one user."""

    def __init__(self, url: str, token: str) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, verify=context, timeout=30, trust_env=False
        )

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def ready(self) -> bool:
        """Whether the API server is ready."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def ask(
        self, verb: str, path: str, body: Any = None, content: str = "application/json",
        headers: dict[str, str] | None = None, **query: str,
    ) -> httpx.Response:  # fmt: skip
        """Any request; returns the raw response."""
        whole = {"Content-Type": content, **(headers or {})}
        text = None if body is None else json.dumps(body)
        return self._http.request(verb, path, content=text, headers=whole, params=query)

    def must(self, verb: str, path: str, body: Any = None, content: str = "application/json", **query: str) -> Any:
        """As `ask`, but returns the object. AssertionError with the server's message when it refuses."""
        answer = self.ask(verb, path, body, content, None, **query)
        assert answer.status_code < 300, f"{verb} {path}: {answer.text}"
        return answer.json()

    def get(self, path: str) -> Any:
        """An object; None when it does not exist."""
        answer = self.ask("GET", path)
        if answer.status_code == 404:
            return None
        assert answer.status_code < 300, answer.text
        return answer.json()

    def namespace(self, name: str, **labels: str) -> str:
        """Creates a namespace."""
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.must("POST", "/api/v1/namespaces", body)
        return name

    def define(self, crd: dict[str, Any]) -> None:
        """Creates a CustomResourceDefinition; returns when it is served."""
        base = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        self.must("POST", base, crd, fieldValidation="Strict")

        def established() -> bool:
            found = self.get(f"{base}/{crd['metadata']['name']}")["status"].get("conditions") or []
            states = {each["type"]: each["status"] for each in found}
            assert states.get("NonStructuralSchema") != "True", found
            return states.get("Established") == "True"

        eventually("the CRD is established", established)
        group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        for version in crd["spec"]["versions"]:
            path = f"/apis/{group}/{version['name']}/{plural}"
            eventually("the CRD is served", lambda path=path: self.ask("GET", path).status_code == 200)
