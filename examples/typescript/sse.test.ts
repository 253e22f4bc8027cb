import assert from "node:assert/strict";
import { test } from "node:test";

import { events } from "./sse.ts";

async function* bytes(text: string): AsyncGenerator<Uint8Array> {
  for (const byte of new TextEncoder().encode(text)) yield Uint8Array.of(byte);
}

const cases: [string, string[]][] = [
  ["data: a\n\ndata: b\n\ndata: [DONE]\n\ndata: c\n\n", ["a", "b"]],
  [": waiting\n\ndata:ä\r\n\r\n", ["ä"]],
  ["event: x\ndata: 1\ndata: 2\n\n", ["1\n2"]],
  ["data: cut off", []],
];

for (const [text, expected] of cases) {
  test(`${JSON.stringify(text)} is read byte by byte`, async () => {
    const found: string[] = [];
    for await (const event of events(bytes(text))) found.push(event);
    assert.deepEqual(found, expected);
  });
}
