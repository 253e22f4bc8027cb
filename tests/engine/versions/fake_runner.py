"""A model runner without a model: has the state of a real one, and checks what a real one would silently corrupt.

It records each request's tokens and block table from the scheduler output of that version, writes every computed token
into its KV slot, and reads the whole context back before it samples: a block allocated to two requests, a prefix hit on
other content, a token out of place or a request unknown to the runner fails immediately. The next token is a function
of request and position, so every output is known in advance.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.outputs import ModelRunnerOutput

BLOCK_SIZE = 16


def next_token(request_id: str, position: int) -> int:
    """The token that the model puts at `position` of this request."""
    return 1000 + zlib.crc32(f"{request_id}:{position}".encode()) % 50_000


@dataclass
class Known:
    """A request's state in the runner."""

    tokens: list[int]
    # A table for each group of layers.
    blocks: list[list[int]]


class FakeRunner:
    """`v2`: the semantics of model runner V2, where slots end at a preemption; else those of V1.

    `windows`: for each group of layers how many tokens back it looks, 0 = all of them.
    """

    def __init__(
        self,
        v2: bool,
        slots: int,
        choose: Callable[[str, int], int] = next_token,
        windows: Sequence[int] = (0,),
    ) -> None:
        self._v2, self._slots, self._windows = v2, slots, windows
        self._choose = choose
        self.known: dict[str, Known] = {}
        self.kv: dict[tuple[int, int], int] = {}
        self.most_at_once = 0

    def run(self, output: Any, grammar: Any = None) -> ModelRunnerOutput:
        """One step. AssertionError where a real runner would compute on wrong data."""
        self._forget(output)
        computed = self._take_new(output) | self._take_cached(output)
        assert set(computed) == set(output.num_scheduled_tokens), "scheduled requests without data"
        assert len(computed) <= self._slots, f"{len(computed)} requests in {self._slots} slots"
        if self._v2:
            assert len(self.known) <= self._slots, f"slots leak: {sorted(self.known)}"
        self.most_at_once = max(self.most_at_once, len(computed))
        rows = (
            dict(zip(grammar.structured_output_request_ids, grammar.grammar_bitmask, strict=False)) if grammar else {}
        )
        sampled = [self._execute(key, computed[key], count, rows.get(key)) for key, count in
                   output.num_scheduled_tokens.items()]  # fmt: skip
        ids = list(output.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=ids, req_id_to_index={key: at for at, key in enumerate(ids)}, sampled_token_ids=sampled
        )

    def _forget(self, output: Any) -> None:
        gone = set(output.finished_req_ids)
        if self._v2:
            gone |= set(output.preempted_req_ids or ())
        for key in gone:
            self.known.pop(key, None)

    def _take_new(self, output: Any) -> dict[str, int]:
        for new in output.scheduled_new_reqs:
            tokens = new.prefill_token_ids if self._v2 else new.prompt_token_ids
            assert new.req_id not in self.known, f"{new.req_id} comes as new while the runner has it"
            self.known[new.req_id] = Known(list(tokens), _tables(new.block_ids))
        return {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}

    def _take_cached(self, output: Any) -> dict[str, int]:
        cached = output.scheduled_cached_reqs
        for at, key in enumerate(cached.req_ids):
            assert key in self.known, f"{key} is scheduled as known, but the runner has no slot of it"
            known, blocks = self.known[key], cached.new_block_ids[at]
            if key in cached.resumed_req_ids:
                assert not self._v2, "runner V2 takes resumed requests as new ones"
                # A real V1 runner takes the tokens from here, since its own row was given up.
                known.tokens, known.blocks = list(cached.all_token_ids[key]), _tables(blocks)
            elif blocks is not None:
                for table, more in zip(known.blocks, blocks, strict=True):
                    table += more
        return dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))

    def _execute(self, key: str, computed: int, count: int, row: Any) -> list[int]:
        known, end = self.known[key], computed + count
        assert end <= len(known.tokens), f"{key} is scheduled up to {end}, it has {len(known.tokens)} tokens"
        for table in known.blocks:
            for position in range(computed, end):
                self.kv[table[position // BLOCK_SIZE], position % BLOCK_SIZE] = known.tokens[position]
        if end < len(known.tokens):
            return []
        for table, window in zip(known.blocks, self._windows, strict=True):
            for position in range(max(0, end - window) if window else 0, end):
                held = self.kv.get((table[position // BLOCK_SIZE], position % BLOCK_SIZE))
                assert held == known.tokens[position], f"{key}: KV of position {position} is not its own"
        token = self._choose(key, end)
        assert row is None or int(row[token // 32]) >> token % 32 & 1, f"{key}: the grammar forbids token {end}"
        known.tokens.append(token)
        return [token]


def _tables(block_ids: Iterable[Iterable[int]]) -> list[list[int]]:
    return [list(table) for table in block_ids]
