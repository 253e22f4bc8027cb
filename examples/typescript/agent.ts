/**
 * A small agent against a cluster over gRPC: two calls with a tool between them are one program, and a second program is
 * cancelled while its call runs.
 *
 *     export AGENTSERVING_CONTROL_PLANE=... OPENAI_API_KEY=... MODEL=...   # `agentserving up` prints them
 *     npm start
 */
import { setTimeout as sleep } from "node:timers/promises";

import { type Client, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { CallService, type GenerateResponse } from "./agentserving/v1/call_service_pb.ts";
import { ProgramService } from "./agentserving/v1/program_service_pb.ts";
import { Outcome, ProgramState } from "./agentserving/v1/types_pb.ts";
import { events } from "./sse.ts";

const { AGENTSERVING_CONTROL_PLANE: address, OPENAI_API_KEY: key, MODEL: model } = process.env;

const withKey: Interceptor = (next) => (request) => {
  if (key) request.header.set("authorization", `Bearer ${key}`);
  return next(request);
};

// Without it, an idle connection keeps the process for a quarter of an hour.
const idleConnectionTimeoutMs = 500;
const transport = createGrpcTransport({ baseUrl: `http://${address}`, interceptors: [withKey], idleConnectionTimeoutMs });
const programs: Client<typeof ProgramService> = createClient(ProgramService, transport);
const calls: Client<typeof CallService> = createClient(CallService, transport);

/** Makes one call of a program. `shown` receives the text as it comes. */
async function ask(
  programId: string,
  question: string,
  { tokens = 20, after = [] as string[], shown = (_text: string): void => {} } = {},
): Promise<{ callId: string; text: string }> {
  const admitted = await calls.admitCall({ programId, parentCallIds: after });
  const baseUrl = `http://${admitted.sidecarAddress}`;
  const engine = createClient(CallService, createGrpcTransport({ baseUrl, idleConnectionTimeoutMs }));
  const messages = [{ role: "user", content: question }];
  const body = JSON.stringify({ model, messages, stream: true, max_tokens: tokens });
  const answer = engine.generate({
    ticket: admitted.ticket,
    callId: admitted.callId,
    path: "/v1/chat/completions",
    body: new TextEncoder().encode(body),
  });
  let text = "";
  for await (const event of events(chunks(answer))) {
    for (const choice of JSON.parse(event).choices) {
      text += choice.delta.content ?? "";
      shown(choice.delta.content ?? "");
    }
  }
  return { callId: admitted.callId, text };
}

/** The body of an engine's answer; an error if its status, which is in the first message, says so. */
async function* chunks(answer: AsyncIterable<GenerateResponse>): AsyncGenerator<Uint8Array> {
  let status = 0;
  for await (const message of answer) {
    status ||= message.httpStatus;
    if (status !== 200) throw new Error(`the engine answered ${status}: ${new TextDecoder().decode(message.chunk)}`);
    yield message.chunk;
  }
}

/** Prints each change of a program until it is closed. */
async function watch(programId: string): Promise<void> {
  const stop = new AbortController();
  for await (const news of programs.watchPrograms({ programId }, { signal: stop.signal })) {
    for (const each of news.changed) {
      console.log(`${each.programId} is ${ProgramState[each.state]} after ${each.callsCompleted} calls`);
      // The stream itself has no end.
      if (each.state === ProgramState.CLOSED) return stop.abort();
    }
  }
}

/** A call, a tool, and a call that uses both. */
async function research(): Promise<void> {
  const { program } = await programs.openProgram({ name: "typescript-research" });
  const { programId } = program!;
  const closed = watch(programId);
  const first = await ask(programId, "What should we look up about queues?");
  // For as long as a tool works, the engine may keep what it has computed for the program.
  await programs.beginToolWait({ programId, tool: "search", expectedUs: 200_000n });
  await sleep(200);
  await programs.endToolWait({ programId });
  const shown = (text: string): boolean => process.stdout.write(text);
  await ask(programId, `Three results on ${first.text}. Sum up.`, { tokens: 40, after: [first.callId], shown });
  console.log();
  await programs.closeProgram({ programId, outcome: Outcome.COMPLETED });
  await closed;
}

/** Begins a long call and cancels its program meanwhile, which ends the call in the engine. */
async function cancelled(): Promise<void> {
  const { program } = await programs.openProgram({ name: "typescript-cancelled" });
  const { programId } = program!;
  let call: ReturnType<typeof ask>;
  const begun = new Promise<void>((resolve) => {
    call = ask(programId, "Count to a million.", { tokens: 2000, shown: () => resolve() });
  });
  await Promise.race([begun, call!]);
  const answer = await programs.cancelProgram({ programId });
  const ending = await call!.then(() => "its end", String);
  console.log(`${programId}: ${answer.callsCancelled} call cancelled; the stream ended with: ${ending}`);
  const refusal = await ask(programId, "And now?").catch((error: unknown) => error);
  if (!(refusal instanceof ConnectError)) throw new Error("a cancelled program took a call");
  console.log(`another call is refused: ${refusal.message}`);
}

await research();
await cancelled();
