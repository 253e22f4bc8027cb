"""The configuration of Envoy, the data plane in front of the engines, as values. Pure.

`bootstrap` renders one JSON document from `FrontSettings`. Envoy speaks HTTP with clients and engines; the picker, a
process next to it, decides where a call goes (`authz`). Both share one directory, `FrontSettings.run_dir`:

    picker.sock     asked by Envoy's ext_authz filters about each request
    reads.sock      the picker's own answers: GET /v1/models
    log.sock        Envoy's access log service (gRPC) at the picker: how each call ended
    admin.sock      Envoy's admin interface; no port is opened for it
    crowd/          connections, written by the picker: what share of Envoy's connections is open
    engines/        eds.json, written by the picker: the engines, with their health
"""

from agentserving_gateway.envoy.bootstrap import bootstrap
from agentserving_gateway.envoy.settings import BUDGET_HOLD_S, MAX_CONNECTIONS, FrontSettings

__all__ = ["BUDGET_HOLD_S", "MAX_CONNECTIONS", "FrontSettings", "bootstrap"]
