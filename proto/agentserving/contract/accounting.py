"""How a finished call changes its program's account (paper, section 4: PLAS sums, ATLAS takes the maximum). Pure."""

from __future__ import annotations

from agentserving.contract.policy import Accounting


def charge_call(accounting: Accounting, account_us: int, account_at_admit_us: int, service_us: int) -> int:
    """The account after a call of `service_us` that was admitted when the account was `account_at_admit_us`.

    SUM adds. CRITICAL_PATH takes the longest chain seen, so parallel calls count once. NONE also sums, so that a policy
    applied later finds the true account, but calls do not start from it.
    """
    if service_us < 0:
        raise ValueError(f"service_us must not be negative, got {service_us}")
    if accounting is Accounting.CRITICAL_PATH:
        return max(account_us, account_at_admit_us + service_us)
    return account_us + service_us


def account_at_admit(accounting: Accounting, account_us: int) -> int:
    """The account a new call starts from: zero when the policy treats calls as independent (NONE)."""
    return 0 if accounting is Accounting.NONE else account_us
