// Vercel's AI SDK.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, tool as asTool } from "ai";
import { z } from "zod";

import { main } from "./shared.mjs";

await main(async (prompt, tool, headers) => {
  const provider = createOpenAICompatible({
    name: "agentserving",
    baseURL: process.env.OPENAI_BASE_URL,
    apiKey: process.env.OPENAI_API_KEY,
    headers,
  });
  const weather = asTool({
    description: "Tells the weather.",
    inputSchema: z.object({ city: z.string() }),
    execute: tool,
  });
  const model = provider(process.env.OPENAI_MODEL);
  const tools = { get_weather: weather };
  return (await generateText({ model, system: "Be brief.", prompt, tools, stopWhen: stepCountIs(9) })).text;
});
