// OpenAI's SDK for Node, with its own loop of tool calls.

import OpenAI from "openai";

import { main } from "./shared.mjs";

await main(async (prompt, tool, headers) => {
  const runner = new OpenAI({ defaultHeaders: headers }).chat.completions.runTools({
    model: process.env.OPENAI_MODEL,
    messages: [
      { role: "system", content: "Be brief." },
      { role: "user", content: prompt },
    ],
    tools: [
      {
        type: "function",
        function: {
          name: "get_weather",
          description: "Tells the weather.",
          parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
          parse: JSON.parse,
          function: tool,
        },
      },
    ],
  });
  return runner.finalContent();
});
