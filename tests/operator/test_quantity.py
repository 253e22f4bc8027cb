"""Quantities as numbers, as Kubernetes reads them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
from agentserving_operator.quantity import parse_quantity
from agentserving_operator.spec.fields import QUANTITY
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("quantity", "number"),
    [
        ("0", "0"), ("1000m", "1"), ("1.5", "1.5"), ("+.5", "0.5"), ("-5.", "-5"), ("1500u", "0.0015"), ("2n", "2e-9"),
        ("3k", "3000"), ("3M", "3000000"), ("3G", "3e9"), ("3T", "3e12"), ("3P", "3e15"), ("3E", "3e18"),
        ("1Ki", "1024"), ("1Mi", "1048576"), ("1Gi", 2**30), ("1Ti", 2**40), ("1.5Pi", 3 * 2**49), ("1Ei", 2**60),
        ("1e3", "1000"), ("1E3", "1000"), ("12e-1", "1.2"), (2, "2"), (0.5, "0.5"),
    ],
)  # fmt: skip
def test_a_quantity_is_its_number(quantity: Any, number: Any) -> None:
    assert parse_quantity(quantity) == Decimal(number)


@pytest.mark.parametrize(
    "text", ["", "m", "1K", "1ki", "1mi", "1 Gi", " 1", "1_0", "one", "inf", "NaN", "1e", "1e9999", "0x1", "1\n", None]
)
def test_what_is_no_quantity_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=f"not a quantity: {re.escape(repr(text))}"):
        parse_quantity(text)


@given(st.from_regex(QUANTITY, fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_every_quantity_that_a_spec_may_have_is_a_number(text: str) -> None:
    assert parse_quantity(text) >= 0
