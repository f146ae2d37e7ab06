// One video, a conversation about it, and the answers of every model of the server side by side.

const $ = (id) => document.getElementById(id);
const KEPT = ["num_frames", "temperature", "top_p", "max_tokens", "system"]; // over a reload
const state = { models: [], videos: [], url: "", past: [], pending: null, stop: null };

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
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
  Object.assign(state, { models: settings.models, videos: settings.videos, limit: settings.max_upload_mb });
  $("num_frames").value = settings.num_frames;
  $("num_frames").max = settings.max_frames;
  $("max_tokens").max = settings.max_new_tokens;
  $("max_tokens").value = Math.min(128, settings.max_new_tokens);
  for (const id of KEPT) $(id).value = localStorage.getItem(id) ?? $(id).value;
  for (const id of ["num_frames", "max_tokens"]) // another server may allow less
    $(id).value = Math.min($(id).value, $(id).max);
  const all = settings.more_videos ? ": the folders hold more than are listed" : "";
  $("search").placeholder = `Search ${state.videos.length} videos${all}`;
  search();
  say("Choose a video.");
  const last = localStorage.getItem("video");
  if (state.videos.some(({ url }) => url === last)) {
    $("videos").value = last;
    await choose();
  }
}

// Lists the videos whose names hold every word of the search.
function search() {
  const words = $("search").value.toLowerCase().split(/\s+/);
  const found = state.videos.filter(({ name }) => words.every((word) => name.toLowerCase().includes(word)));
  $("videos").replaceChildren(...found.map(({ name, url }) => new Option(name, url)));
  $("videos").value = state.url;
}

async function choose() {
  const file = $("file").files[0];
  state.url = $("videos").value;
  restart();
  if (state.url) {
    localStorage.setItem("video", state.url);
  } else if (file) {
    if (file.size > state.limit * 2 ** 20) throw new Error(`larger than ${state.limit} MB`);
    say("Uploading …");
    const headers = { "content-type": "application/octet-stream" };
    const reply = await call("page/uploads", { method: "POST", headers, body: file });
    state.url = (await reply.json()).url;
  }
  await play(file);
  await showFrames();
}

// A video element sends no API key, so with one the file is fetched first.
async function play(file) {
  const player = $("player");
  if (player.src.startsWith("blob:")) URL.revokeObjectURL(player.src);
  player.removeAttribute("src");
  player.hidden = !state.url;
  $("still").hidden = true;
  if (!state.url) return;
  const path = `page/video?url=${encodeURIComponent(state.url)}`;
  if (file) player.src = URL.createObjectURL(file);
  else if ($("key").value) player.src = URL.createObjectURL(await (await call(path)).blob());
  else player.src = path;
}

async function showFrames() {
  $("strip").replaceChildren();
  if (!state.url) return say("Choose a video.");
  say("Reading frames …");
  const asked = { model: state.models[0], url: state.url, num_frames: Number($("num_frames").value) };
  const { frames, duration } = await (await post("page/frames", asked)).json();
  const digits = duration / frames.length < 0.2 ? 2 : 1;
  $("strip").append(
    ...frames.map(({ time, src }) => {
      const button = element("button");
      const image = element("img");
      image.src = src;
      image.alt = "";
      button.type = "button";
      button.dataset.time = time;
      button.title = `Go to ${time.toFixed(2)} s`;
      button.append(image, `${time.toFixed(digits)} s`);
      button.addEventListener("click", () => seek(time));
      return button;
    }),
  );
  say(`${frames.length} frames of ${duration.toFixed(1)} s`);
  mark($("player").currentTime);
}

function seek(time) {
  const player = $("player");
  mark(time);
  if (player.readyState) player.currentTime = time;
  else player.addEventListener("loadedmetadata", () => { player.currentTime = time; }, { once: true });
}

// Marks the frame that is shown, or was last; shows it where the browser cannot play the file.
function mark(time) {
  const buttons = [...$("strip").children];
  const now = buttons.findLast((button) => Number(button.dataset.time) <= time + 0.01);
  for (const button of buttons) button.classList.toggle("now", button === now);
  const still = $("player").error && now;
  $("still").hidden = !still;
  if (still) $("still").src = now.firstChild.src;
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

// Returns the messages of a model's conversation; the video is in the first of the user's.
function messages(past, question) {
  const all = [...past, { role: "user", content: question }];
  if (state.url) {
    const video = { type: "video_url", video_url: { url: state.url } };
    all[0] = { role: "user", content: [video, { type: "text", text: all[0].content }] };
  }
  const system = $("system").value.trim();
  return system ? [{ role: "system", content: system }, ...all] : all;
}

async function ask(article, model, past, question, signal) {
  const [, text, note] = article.children;
  const body = { model, messages: messages(past, question), stream: true };
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
    note.className = signal.aborted ? "" : "error";
  } finally {
    article.classList.remove("busy");
  }
  // A question without an answer is no part of the conversation.
  if (text.textContent)
    past.push({ role: "user", content: question }, { role: "assistant", content: text.textContent });
}

async function submit(event) {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || $("ask").disabled) return;
  $("ask").disabled = true;
  await state.pending;
  const { signal } = (state.stop = new AbortController());
  const articles = state.models.map((name) => {
    const article = element("article", "", "busy");
    article.append(element("h2", name), element("p"), element("small"));
    return article;
  });
  const answers = element("div", "", "answers");
  answers.append(...articles);
  $("thread").append(element("p", question, "question"), answers);
  $("question").value = "";
  $("stop").disabled = $("restart").disabled = false;
  answers.scrollIntoView({ block: "nearest" });
  const past = state.past;
  await Promise.all(articles.map((a, i) => ask(a, state.models[i], past[i], question, signal)));
  answers.scrollIntoView({ block: "nearest" });
  $("ask").disabled = false;
  $("stop").disabled = true;
}

function restart() {
  state.stop?.abort();
  state.past = state.models.map(() => []);
  $("thread").replaceChildren();
  $("restart").disabled = true;
}

// Runs one after the other, so that a late reply cannot overwrite a newer one.
function then(work) {
  state.pending = (state.pending ?? Promise.resolve())
    .then(work)
    .catch((error) => say(error.message, true));
}

$("form").addEventListener("submit", submit);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("stop").addEventListener("click", () => state.stop?.abort());
$("restart").addEventListener("click", restart);
$("search").addEventListener("input", search);
$("videos").addEventListener("change", () => { $("file").value = ""; then(choose); });
$("file").addEventListener("change", () => { $("videos").value = ""; then(choose); });
$("num_frames").addEventListener("change", () => then(showFrames));
$("key").addEventListener("change", () => then(start));
$("player").addEventListener("timeupdate", () => mark($("player").currentTime));
$("player").addEventListener("error", () => { $("player").hidden = true; mark(0); });
for (const id of KEPT) $(id).addEventListener("change", () => localStorage.setItem(id, $(id).value));
then(start);
