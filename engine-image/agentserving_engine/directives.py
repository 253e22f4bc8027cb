"""What the sidecar tells the engine to do, executed between two steps."""

from __future__ import annotations

from typing import Any

from agentserving.contract.channel import AckCalls, Cancel, Preempt, SetAccounts, SetHolds, SetPolicy, ToEngine
from agentserving.contract.policy import from_dict
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from agentserving_engine.keeping import Keeping
from agentserving_engine.plugin_state import PluginState, now_us
from agentserving_engine.steering import Steering


class Directives:
    """Executes the messages in the channel's inbox."""

    def __init__(self, state: PluginState, steering: Steering, keeping: Keeping) -> None:
        self._state, self._steering, self._keeping = state, steering, keeping
        self._cancelled: list[tuple[int, EngineCoreOutput]] = []

    def take(self, *, steers: bool) -> None:
        """Everything that has come in since the last step; without `steers` nothing that orders or holds calls."""
        if self._state.channel is None:
            return
        inbox = self._state.channel.inbox
        while inbox:
            self._execute(inbox.popleft(), steers)

    def answer_cancelled(self, result: dict[int, Any]) -> None:
        """Adds the last outputs of cancelled requests to what goes to the front end."""
        answers, self._cancelled = self._cancelled, []
        for client_index, output in answers:
            result.setdefault(client_index, EngineCoreOutputs()).outputs.append(output)

    def _execute(self, message: ToEngine, steers: bool) -> None:
        state = self._state
        match message:
            case AckCalls():
                state.book.acknowledge(message.calls)
            case SetAccounts():
                for root, attained, wait in message.accounts:
                    state.book.learn(root, attained, wait)
                    state.calls.set_account(root, attained, wait)
            case Cancel():
                self._cancel([key for call_id in message.call_ids for key in state.book.requests_of(call_id)])
            case SetPolicy() if steers:
                self._set_policy(message)
            case Preempt() if steers:
                for key in state.book.requests_of(message.call_id):
                    self._steering.preempt(key)
            case SetHolds() if steers:
                wanted, held = set(message.program_ids), state.calls.held_programs
                for program_id in sorted(wanted ^ held):
                    self._pause(program_id, program_id in wanted)

    def _set_policy(self, message: SetPolicy) -> None:
        state = self._state
        policy = from_dict(message.policy)
        state.calls.set_policy(policy, lambda key: state.book.facts(key, policy.accounting))
        state.policy_version = message.version
        self._steering.refresh()
        self._keeping.policy_changed()

    def _pause(self, program_id: str, paused: bool) -> None:
        for key in self._state.calls.pause(program_id, paused, now_us()):
            self._steering.preempt(key)
        self._steering.refresh()

    def _cancel(self, keys: list[str]) -> None:
        """Aborts requests and answers their clients: vLLM's own abort tells the front end nothing."""
        for request in self._state.vllm.finish_requests(keys, RequestStatus.FINISHED_ABORTED):
            output = EngineCoreOutput(
                request_id=request.request_id, new_token_ids=[], finish_reason=request.get_finished_reason()
            )
            self._cancelled.append((request.client_index, output))
