/**
 * Data of each server-sent event, in which form engines stream answers, until the stream or `[DONE]` ends it. Comments,
 * which engines send while a call waits, are passed over.
 */
export async function* events(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  let data: string[] = [];
  for await (const chunk of chunks) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop()!;
    for (const line of lines.map((each) => each.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      if (line !== "" || data.length === 0) continue;
      const event = data.join("\n");
      data = [];
      if (event === "[DONE]") return;
      yield event;
    }
  }
}
