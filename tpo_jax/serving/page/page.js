// One video, one question, and the answers of every model of the server side by side.

const $ = (id) => document.getElementById(id);
const state = { models: [], url: "", pending: null, stop: null };

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

// fetch with the API key; throws the message of an error in OpenAI's format.
async function call(path, options = {}) {
  const headers = { ...options.headers };
  if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
  const reply = await fetch(path, { ...options, headers });
  if (reply.status === 401) $("key_label").hidden = false;
  if (!reply.ok) {
    const body = await reply.json().catch(() => ({}));
    throw new Error(body.error?.message ?? `the server returned status ${reply.status}`);
  }
  return reply;
}

const post = (path, body, signal) =>
  call(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });

async function start() {
  const settings = await (await call("page/settings")).json();
  state.models = settings.models;
  state.limit = settings.max_upload_mb;
  for (const video of settings.videos) $("videos").add(new Option(video.split("/").pop(), video));
  $("num_frames").value = settings.num_frames;
  $("num_frames").max = settings.max_frames;
  $("max_tokens").max = settings.max_new_tokens;
  $("max_tokens").value = Math.min(128, settings.max_new_tokens);
  $("answers").replaceChildren(
    ...state.models.map((name) => {
      const article = document.createElement("article");
      for (const tag of ["h2", "p", "small"]) article.append(document.createElement(tag));
      article.firstChild.textContent = name;
      return article;
    }),
  );
  say("Choose a video.");
}

async function choose() {
  const file = $("file").files[0];
  if ($("videos").value) {
    state.url = $("videos").value;
  } else if (file) {
    if (file.size > state.limit * 2 ** 20) throw new Error(`larger than ${state.limit} MB`);
    say("Uploading …");
    const headers = { "content-type": "application/octet-stream" };
    const reply = await call("page/uploads", { method: "POST", headers, body: file });
    state.url = (await reply.json()).url;
  } else {
    state.url = "";
  }
  await showFrames();
}

async function showFrames() {
  $("timeline").replaceChildren();
  $("start").textContent = $("duration").textContent = "";
  if (!state.url) return say("Choose a video.");
  say("Reading frames …");
  const asked = { model: state.models[0], url: state.url, num_frames: Number($("num_frames").value) };
  const { frames, duration } = await (await post("page/frames", asked)).json();
  const last = duration || frames.at(-1).time || 1;
  $("timeline").append(
    ...frames.map(({ time, src }) => {
      const figure = document.createElement("figure");
      const image = document.createElement("img");
      const caption = document.createElement("figcaption");
      image.src = src;
      image.alt = `Frame at ${time.toFixed(2)} seconds`;
      caption.textContent = `${time.toFixed(1)} s`;
      figure.tabIndex = 0;
      figure.style.left = `calc((100% - 5.5rem) * ${Math.min(1, time / last)})`;
      figure.append(image, caption);
      return figure;
    }),
  );
  $("start").textContent = "0 s";
  $("duration").textContent = `${duration.toFixed(1)} s`;
  say(`${frames.length} frames of ${duration.toFixed(1)} s`);
}

// Yields the chunks of an answer from server-sent events.
async function* pieces(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

async function ask(article, model, signal) {
  const [, text, note] = article.children;
  text.textContent = note.textContent = "";
  article.classList.add("busy");
  const content = [{ type: "text", text: $("question").value }];
  if (state.url) content.unshift({ type: "video_url", video_url: { url: state.url } });
  const body = { model, messages: [{ role: "user", content }], stream: true };
  body.stream_options = { include_usage: true };
  for (const name of ["num_frames", "temperature", "top_p", "max_tokens"])
    body[name] = Number($(name).value);
  const began = performance.now();
  try {
    for await (const chunk of pieces(await post("v1/chat/completions", body, signal))) {
      text.textContent += chunk.choices[0]?.delta.content ?? "";
      if (chunk.usage) {
        const seconds = ((performance.now() - began) / 1000).toFixed(1);
        note.textContent = `${chunk.usage.completion_tokens} tokens, ${seconds} s`;
      }
    }
  } catch (error) {
    note.textContent = signal.aborted ? "stopped" : error.message;
  } finally {
    article.classList.remove("busy");
  }
}

async function submit(event) {
  event.preventDefault();
  $("ask").disabled = true;
  await state.pending;
  state.stop = new AbortController();
  $("stop").disabled = false;
  const articles = [...$("answers").children];
  await Promise.all(articles.map((a, i) => ask(a, state.models[i], state.stop.signal)));
  $("ask").disabled = false;
  $("stop").disabled = true;
}

// Runs one after the other, so that a late reply cannot overwrite a newer one.
function then(work) {
  state.pending = (state.pending ?? Promise.resolve())
    .then(work)
    .catch((error) => say(error.message, true));
}

$("form").addEventListener("submit", submit);
$("stop").addEventListener("click", () => state.stop?.abort());
$("videos").addEventListener("change", () => { $("file").value = ""; then(choose); });
$("file").addEventListener("change", () => { $("videos").value = ""; then(choose); });
$("num_frames").addEventListener("change", () => then(showFrames));
$("key").addEventListener("change", () => then(start));
then(start);
