// The server's stream of one chat completion, as objects.

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Objects of the data lines of a body; ends at [DONE]. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      held += value;
      const lines = held.split("\n");
      held = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        const data = line.slice("data: ".length);
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    await reader.cancel();
  }
}

async function call(path, key, options) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new ServerError(response.status, told?.error?.message ?? `status ${response.status}`);
}

export async function readModel(key) {
  const response = await call("/v1/models", key, {});
  return (await response.json()).data[0];
}

/** Chunks of an answer to `wishes`, a body of POST /v1/chat/completions. */
export async function* streamAnswer(wishes, key, signal) {
  const body = JSON.stringify({ ...wishes, stream: true, trace: true });
  const response = await call("/v1/chat/completions", key, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body,
    signal,
  });
  for await (const chunk of readEvents(response.body)) {
    if (chunk.error) throw new ServerError(0, chunk.error.message);
    yield chunk;
  }
}
