// What the agents in JavaScript share: their tool, their sub-agent, and what they print; as shared.py, in environments
// without our client library. A sub-agent is a program because its requests name one.
//
//     node AGENT.mjs [--sub-agent] PROMPT

import { randomUUID } from "node:crypto";

// Runs an agent as the arguments say. `answer`: (prompt, tool, headers of its requests) => its answer.
export async function main(answer) {
  const given = process.argv.slice(2);
  const withSubAgent = given[0] === "--sub-agent";
  let tools = 0;
  const getWeather = async () => {
    tools += 1;
    return "sunny";
  };
  const askHelper = async () => {
    tools += 1;
    const program = { "x-agentserving-program-id": `helper-${randomUUID()}`, "x-agentserving-program-name": "helper" };
    return answer("say hello", getWeather, program);
  };
  const text = await answer(given.at(-1), withSubAgent ? askHelper : getWeather, {});
  console.log(JSON.stringify({ tools, answer: text }));
}
