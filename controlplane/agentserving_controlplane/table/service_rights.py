"""Which class of service a new program gets, and who may ask for which. Pure."""

from __future__ import annotations

from collections.abc import Callable

from agentserving.contract.ids import Tenant
from agentserving.contract.service_class import ServiceClass, exceeds, granted

from agentserving_controlplane.errors import ForbiddenError, InvalidError


def no_limit(tenant: Tenant) -> ServiceClass:
    """Of tenants that nothing has been said about."""
    return ServiceClass.UNSPECIFIED


class ServiceRights:
    """The rights of tenants; those of keys come with each request."""

    def __init__(self, default: ServiceClass = ServiceClass.STANDARD) -> None:
        # Of programs that get none from a client, its key or its tenant.
        self.default = default
        # The best class that a tenant may use; the leader sets it.
        self.of_tenant: Callable[[Tenant], ServiceClass] = no_limit

    def granted(self, tenant: Tenant, asked: ServiceClass, key_limit: ServiceClass) -> ServiceClass:
        """The class of a new program. ForbiddenError when the client asks for more than its key or tenant permits."""
        limit = max(key_limit, self.of_tenant(tenant))
        if exceeds(asked, limit):
            raise ForbiddenError(
                "SERVICE_CLASS_NOT_PERMITTED",
                f"service_class: this client may not use {asked.label}, at best {limit.label}: ask for {limit.label}"
                " (x-agentserving-service) or for nothing; an administrator permits more with `agentserving tenant set"
                " --service-class` or a key made with `agentserving key create --service-class`",
                field="service_class",
            )
        return granted(asked, limit, self.default)


def known_service_class(number: int, field: str = "service_class") -> ServiceClass:
    """A class of a request. InvalidError for a number that is none."""
    found = ServiceClass(number)
    if number and not found:
        raise InvalidError("BAD_SERVICE_CLASS", f"{field}: unknown value {number}", field=field)
    return found
