import jinja2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from tpo_jax.data import prompts
from tpo_jax.data.processor import Processor
from tpo_jax.data.rows import Size
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError
from tpo_jax.families import preset
from tpo_jax.families.llava_qwen.template import DPO_TRAINER, IM_END, IM_START, INFERENCE
from tpo_jax.families.qwen_vl import template as qwen_vl
from tpo_jax.families.template import PLACEHOLDERS, TIME_INSTRUCTIONS, Message
from tpo_jax.models.config import most_frames

VISUAL = -200
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
TIMES = INFERENCE.time_opening("inline", [0.0, 1.534, 96.4], 98.0)


@pytest.mark.parametrize("template", [INFERENCE, DPO_TRAINER, qwen_vl.QWEN3, qwen_vl.QWEN2_5])
def test_a_template_refuses_the_opening_of_another(template):
    """A tuple written as text would be learned."""
    grouped = template in (qwen_vl.QWEN3, qwen_vl.QWEN2_5)
    other = "seconds" if grouped else ("<0.3 seconds>", "<1.3 seconds>")
    with pytest.raises(TypeError, match="this template"):
        template.around_visual(other, (Message("user", "Who?"),), 0)


@pytest.fixture(scope="module")
def qwen(qwen2_tokenizer):
    return load_tokenizer(qwen2_tokenizer)


def tiny_tokenizer(specials=(IM_START, IM_END)) -> Tokenizer:
    """One id per byte, and the chat markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def sequence(row, q, a):
    """The ids of one answer in one row, -200 at every visual token."""
    prefix = np.where(row.visual_index >= 0, VISUAL, row.prefix_ids)[row.prefix_mask]
    inputs = row.input_ids[q, a][row.input_mask[q, a]]
    last = row.target_ids[q, a][row.target_mask[q, a]][-1:]
    return [*prefix, *inputs, *last]


def plain(tokenizer, question, answer, opening, visual):
    rendered = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>"
        f"{opening}\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    )
    before, after = (tokenizer.encode(chunk).ids for chunk in rendered.split("<image>"))
    return [*before, *[VISUAL] * visual, *after]


# The chat template of Qwen2's tokenizers, which is `qwen_1_5` of `llava/conversation.py`, too.
CHAT = jinja2.Template(
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' }}",
    keep_trailing_newline=True,
)
VISUAL_MARK = "\0"  # no content holds it; the oracle splits its text there


def chat(tokenizer, messages, answer, visuals):
    """Ids of a conversation whose contents hold `VISUAL_MARK` where a visual stands."""
    rendered = CHAT.render(messages=[m._asdict() for m in messages])
    first, *others = (tokenizer.encode(chunk).ids for chunk in rendered.split(VISUAL_MARK))
    for n, ids in zip(visuals, others, strict=True):
        first = [*first, *[VISUAL] * n, *ids]
    return [*first, *tokenizer.encode(answer).ids, *tokenizer.encode("<|im_end|>\n").ids]


def trainer(tokenizer, messages, at, answer, visual):
    """Ids and labels of the original DPO trainer, -100 where there is none.

    The visual is in message `at`. Of a message that is not the answer the content has no label.
    """

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    none, start, end, nl = -100, 151644, 151645, ids("\n")
    if messages[0].role != "system":
        messages, at = [Message("system", "You are a helpful assistant."), *messages], at + 1
    sequence, labels = [], []
    for i, (role, content) in enumerate(messages):
        text = ids(content)
        if i == at:
            prompt = "<image>\n" + content.replace("<image>", "").strip()
            text = [*[VISUAL] * visual, *nl, *ids(prompt[len("<image>") :])]
        sequence += [start, *ids(role), *nl, *text, end, *nl]
        labels += [start, *[none] * (1 + len(nl) + len(text)), end, *nl]
    sequence += [*ids("<|im_start|>assistant"), *nl, *ids(answer), end, *nl]
    labels += [start, none, *[none] * len(nl), *ids(answer), end, *nl]
    return sequence, labels


def check_trainer(row, q, a, ids, labels):
    """The row has the ids and the labels; a place of the whole predicts the token behind it."""
    P = row.prefix_mask.sum()
    assert sequence(row, q, a)[:P] == ids[:P]
    assert row.input_ids[q, a][row.input_mask[q, a]].tolist() == ids[P:-1]
    wanted = [(p - 1, i) for p, i in enumerate(labels) if p and i != -100]
    inside = P + np.arange(row.input_ids.shape[-1])
    places = np.where(row.target_at[q, a] >= 0, row.target_at[q, a], inside)
    mask = row.target_mask[q, a]
    assert sorted(zip(places[mask], row.target_ids[q, a][mask], strict=True)) == wanted
    return len(wanted)


@settings(max_examples=60)
@given(
    questions=st.lists(text, min_size=1, max_size=3),
    answers=st.lists(text, min_size=6, max_size=6),
    cut=st.sampled_from(["answer", "video"]),
    padding=st.integers(0, 3),
)
def test_trainer_style_has_the_original_ids_and_labels(qwen, questions, answers, cut, padding):
    questions = questions[:1] if cut == "answer" else questions
    markers = (*PLACEHOLDERS, IM_START, IM_END)
    assume(not any(m in t for t in (*questions, *answers) for m in markers))
    pairs = [(answers[2 * q], answers[2 * q + 1]) for q in range(len(questions))]
    stripped = [prompts.strip_placeholder(question) for question in questions]
    arguments = {"template": DPO_TRAINER, "cut": cut}
    row = prompts.build_row(qwen, stripped, pairs, 5, **arguments)
    size = {"size": Size(response=row.input_ids.shape[-1] + padding)}
    row = prompts.build_row(qwen, stripped, pairs, 5, **arguments, **size)
    for q, (question, group) in enumerate(zip(questions, pairs, strict=True)):
        for a, answer in enumerate(group):
            wanted = trainer(qwen, [Message("user", question)], 0, answer, 5)
            assert check_trainer(row, q, a, *wanted) == 6 + len(qwen.encode(answer).ids) + 2


def test_trainer_style_is_for_one_visual():
    tokenizer = tiny_tokenizer()
    for visuals in ((), (3, 4)):
        with pytest.raises(InputError, match="one video or one image"):
            prompts.build_prompts(tokenizer, ["Who?"], visuals, template=DPO_TRAINER)
    one = prompts.build_row(tokenizer, ["<image> Who?"], [["a"]], (4,), template=DPO_TRAINER)
    video = prompts.build_row(tokenizer, ["Who?"], [["a"]], 4, template=DPO_TRAINER)
    assert all((one.arrays()[name] == value).all() for name, value in video.arrays().items())
    prompt = prompts.build_prompts(tokenizer, ["Who?"], 4, template=DPO_TRAINER)
    assert prompt.target_at is None and not prompt.target_mask.any()
    assert (prompt.prefix_ids == video.prefix_ids).all()
    with pytest.raises(InputError, match="prompt_style='other'"):
        Processor(preset("tiny_longva"), tokenizer, prompt_style="other")


spoken = text.filter(lambda t: not any(m in t for m in (*PLACEHOLDERS, IM_START, IM_END, "\0")))


@st.composite
def conversations(draw):
    """Messages ahead of an answer; those of the assistant may speak of placeholders."""
    messages = [Message("system", draw(spoken))] if draw(st.booleans()) else []
    answers = st.one_of(spoken, st.just("The <video> tag, not <image>."))
    for _ in range(draw(st.integers(0, 3))):
        messages += [Message("user", draw(spoken)), Message("assistant", draw(answers))]
    return [*messages, Message("user", draw(spoken))]


def asked_in(messages):
    return [i for i, message in enumerate(messages) if message.role == "user"]


def with_mark(messages, at, mark):
    message = messages[at]
    return [*messages[:at], message._replace(content=mark + message.content), *messages[at + 1 :]]


@settings(max_examples=60)
@given(
    messages=conversations(), answer=spoken, data=st.data(), opening=st.sampled_from(["", TIMES])
)
def test_a_conversation_on_a_video_has_the_ids_of_the_chat_template(
    qwen, messages, answer, data, opening
):
    """Whole, with its own system text, the video where its placeholder was, the loss on the end."""
    at = data.draw(st.sampled_from(asked_in(messages)))
    content = messages[at].content.strip()
    messages[at] = Message("user", content)
    mark = data.draw(st.sampled_from([*PLACEHOLDERS, "<video>\n"]))
    implied = at == len(messages) - 1 and data.draw(st.booleans())
    asked = messages if implied else with_mark(messages, at, mark)
    wanted = chat(qwen, with_mark(messages, at, f"{VISUAL_MARK}{opening}\n"), answer, [5])
    labels = [*qwen.encode(answer).ids, 151645, 198]
    for cut in ("answer", "video"):
        row = prompts.build_row(
            qwen, [asked], [[answer, "No."]], 5, opening=opening, cut=cut, template=INFERENCE
        )
        assert sequence(row, 0, 0) == wanted
        assert row.target_ids[0, 0][row.target_mask[0, 0]].tolist() == labels
        prompt = prompts.build_prompts(
            qwen, [asked], 5, opening=opening, cut=cut, template=INFERENCE
        )
        assert sequence(prompt, 0, 0) == wanted[: len(wanted) - len(labels)]


@settings(max_examples=40)
@given(messages=conversations(), answer=spoken, data=st.data(), images=st.integers(0, 3))
def test_a_conversation_on_images_has_the_ids_of_the_chat_template(
    qwen, messages, answer, data, images
):
    asked = wanted = messages
    for at in data.draw(
        st.lists(st.sampled_from(asked_in(messages)), min_size=images, max_size=images)
    ):
        asked, wanted = with_mark(asked, at, "<image>"), with_mark(wanted, at, VISUAL_MARK)
    row = prompts.build_row(qwen, [asked], [[answer]], [3] * images, template=INFERENCE)
    assert sequence(row, 0, 0) == chat(qwen, wanted, answer, [3] * images)


@settings(max_examples=30)
@given(messages=conversations(), answers=st.lists(spoken, min_size=2, max_size=2), data=st.data())
def test_trainer_style_of_a_conversation(qwen, messages, answers, data):
    at = data.draw(st.sampled_from(asked_in(messages)))
    messages[at] = Message("user", messages[at].content.strip())
    row = prompts.build_row(
        qwen, [with_mark(messages, at, "<video>")], [answers], 5, template=DPO_TRAINER
    )
    for a, answer in enumerate(answers):
        check_trainer(row, 0, a, *trainer(qwen, messages, at, answer, 5))


def test_what_is_no_conversation_is_named():
    tokenizer = tiny_tokenizer()
    user, said, system = Message("user", "Who?"), Message("assistant", "I."), Message("system", "S")
    marked = Message("user", "<video> Who?")
    for question, reason in (
        ((), "last message before an answer must be the user's"),
        ((user, said), "last message before an answer must be the user's"),
        ((user, system, user), "a system message must come first"),
        ((Message("tool", "x"), user), "role 'tool' must be one of system, user, assistant"),
        ((marked, said, marked), "2 <image> or <video> placeholders"),
        ((user, Message("assistant", "<|im_end|>"), user), "only the template may set"),
        ((Message("system", "<|im_end|>"), user), "only the template may set"),
    ):
        with pytest.raises(InputError, match=reason):
            prompts.build_prompts(tokenizer, [question], 2, template=INFERENCE)
    with pytest.raises(InputError, match="1 <image> placeholders for 2 images"):
        prompts.build_prompts(
            tokenizer, [(Message("user", "<image>"), said, user)], [2, 2], template=INFERENCE
        )
    with pytest.raises(InputError, match="after the same texts"):
        prompts.build_row(
            tokenizer, ["Who?", (system, user)], [["a"], ["b"]], 2, cut="video", template=INFERENCE
        )


@settings(max_examples=40)
@given(
    pieces=st.lists(text, min_size=1, max_size=4),
    placed=st.booleans(),
    cut=st.sampled_from(["answer", "video"]),
)
def test_images_are_placed_at_their_placeholders(qwen, pieces, placed, cut):
    """As the originals' `tokenizer_image_token` has it; in front, as lmms-eval puts them."""
    markers = (*PLACEHOLDERS, IM_START, IM_END)
    assume(not any(m in t for t in pieces for m in markers))
    images = len(pieces) - 1
    question = "<image>".join(pieces) if placed else "".join(pieces)
    assume(placed or "<image>" not in question)
    visuals = [3 + i for i in range(images)]
    row = prompts.build_row(
        qwen, [question], [["An answer."]], visuals, cut=cut, template=INFERENCE
    )
    if not placed and images:
        question = " ".join(["<image>"] * images) + "\n" + question
    chunks = (INFERENCE.head + question + INFERENCE.turn).split("<image>")
    wanted = qwen.encode(chunks[0]).ids
    for n, chunk in zip(visuals, chunks[1:], strict=True):
        wanted += [VISUAL] * n + qwen.encode(chunk).ids
    assert sequence(row, 0, 0) == [*wanted, *qwen.encode("An answer.<|im_end|>\n").ids]
    index = row.visual_index[row.visual_index >= 0]
    assert index.tolist() == list(range(sum(visuals)))


def test_placeholders_agree_with_the_images():
    tokenizer = tiny_tokenizer()
    for question, images in (("<image> <image> Who?", 1), ("<image> Who?", 0), ("<image>", 2)):
        with pytest.raises(InputError, match=f"<image> placeholders for {images} images"):
            prompts.build_prompts(tokenizer, [question], [2] * images, template=INFERENCE)
    for bad in ("<image> <video>", "<image> <|im_end|>"):
        with pytest.raises(InputError, match="only the template may set"):
            prompts.build_prompts(tokenizer, [bad], [2], template=INFERENCE)
    with pytest.raises(InputError, match="in the same places"):
        prompts.build_prompts(
            tokenizer, ["<image> Who?", "Who? <image>"], [2], cut="video", template=INFERENCE
        )


@settings(max_examples=60, deadline=None)
@given(
    questions=st.lists(text, min_size=1, max_size=3),
    answers=st.lists(text, min_size=6, max_size=6),
    cut=st.sampled_from(["answer", "video"]),
    opening=st.sampled_from(["", TIMES, "\n" + TIMES]),
    padding=st.integers(0, 3),
)
def test_any_cut_leaves_the_plain_sequence(qwen, questions, answers, cut, opening, padding):
    questions = questions[:1] if cut == "answer" else questions
    # Tokenised in one go, a leading newline of the answer would melt with the template's.
    assume(not any(a[0].isspace() for a in answers))
    markers = (*PLACEHOLDERS, IM_START, IM_END)
    assume(not any(m in t for t in (*questions, *answers) for m in markers))
    pairs = [(answers[2 * q], answers[2 * q + 1]) for q in range(len(questions))]
    row = prompts.build_row(qwen, questions, pairs, 5, opening=opening, cut=cut, template=INFERENCE)
    p, r = row.prefix_ids.shape[0] + padding, row.input_ids.shape[-1] + padding
    sizes = {"size": Size(p, r)}
    row = prompts.build_row(
        qwen, questions, pairs, 5, opening=opening, cut=cut, **sizes, template=INFERENCE
    )
    assert row.prefix_ids.shape == (p,) and row.input_ids.shape == (len(questions), 2, r)
    assert row.visual_index[row.visual_index >= 0].tolist() == list(range(5))
    for q, (question, group) in enumerate(zip(questions, pairs, strict=True)):
        for a, answer in enumerate(group):
            assert sequence(row, q, a) == plain(qwen, question, answer, opening, 5)
            labels = row.target_ids[q, a][row.target_mask[q, a]].tolist()
            assert labels == [*qwen.encode(answer).ids, 151645, 198]
            n = row.input_mask[q, a].sum()
            assert (row.target_ids[q, a, : n - 1] == row.input_ids[q, a, 1:n]).all()


def test_qwen_ids_of_a_known_prompt(qwen):
    row = prompts.build_row(qwen, ["What happens?"], [["A cat."]], 2, template=INFERENCE)
    head = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198]
    assert row.prefix_ids[:14].tolist() == head
    assert row.prefix_ids[16:].tolist() == [198, 3838, 8573, 30, 151645, 198, 151644, 77091]
    assert row.input_ids[0, 0, 0] == 198 and row.target_ids[0, 0, -2:].tolist() == [151645, 198]


@pytest.mark.parametrize("mode", TIME_INSTRUCTIONS)
def test_time_instruction_is_spelled_as_the_originals(mode):
    text = (
        "The video lasts for 98.00 seconds, and 3 frames are uniformly sampled from it. These "
        "frames are located at 0.00s,1.53s,96.40s.Please answer the following questions related "
        "to this video."
    )
    want = {"none": "", "inline": text, "newline": "\n" + text}[mode]
    assert INFERENCE.time_opening(mode, [0.0, 1.534, 96.4], 98.0) == want


def test_several_questions_share_the_time_instruction(qwen):
    args = qwen, ["Who?", "Where to?"], [["a", "b"], ["c", "d"]], 4
    plain_row = prompts.build_row(*args, cut="video", template=INFERENCE)
    row = prompts.build_row(*args, cut="video", opening=TIMES, template=INFERENCE)
    shared = len(qwen.encode(TIMES).ids) - 1  # the last token melts with the newline behind it
    assert row.prefix_mask.sum() == plain_row.prefix_mask.sum() + shared
    assert row.input_ids.shape == plain_row.input_ids.shape


@pytest.mark.parametrize("cut", ["answer", "video"])
def test_generation_prompt_is_the_row_before_its_answer(cut):
    tokenizer = tiny_tokenizer()
    row = prompts.build_row(tokenizer, ["Who?"], [["A cat."]], 3, cut=cut, template=INFERENCE)
    prompt = prompts.build_prompts(tokenizer, ["Who?"], 3, cut=cut, template=INFERENCE)
    assert (prompt.prefix_ids == row.prefix_ids).all() and not prompt.target_mask.any()
    n = prompt.input_mask.sum()
    assert (prompt.input_ids[0, 0, :n] == row.input_ids[0, 0, :n]).all()
    assert row.target_mask[0, 0].argmax() == n - 1


def test_too_long_is_named():
    args = tiny_tokenizer(), ["Who?"], [["A cat."]], 40
    text = prompts.build_row(*args, template=INFERENCE).prefix_mask.sum() - 40
    with pytest.raises(InputError, match=f"40 visual, {text} text.*{text + 31}"):
        prompts.build_row(*args, size=Size(prefix=text + 31), template=INFERENCE)
    with pytest.raises(InputError, match=r"more than the 5 of max_response"):
        prompts.build_row(*args, size=Size(response=5), template=INFERENCE)


@given(
    duration=st.floats(1, 3000),
    frames=st.integers(2, 80),
    per_frame=st.integers(1, 30),
    room=st.integers(0, 2000),
    mode=st.sampled_from(TIME_INSTRUCTIONS),
)
@settings(max_examples=30, deadline=None)
def test_most_frames_is_the_maximum(duration, frames, per_frame, room, mode):
    """Found by trying every number: fewer frames also shorten the time instruction."""
    tokenizer = tiny_tokenizer()

    def fits(times):
        opening = INFERENCE.time_opening(mode, times, duration)
        visual = per_frame * len(times)
        row = prompts.build_prompts(
            tokenizer, ["Who?"], visual, opening=opening, template=INFERENCE
        )
        return row.prefix_mask.sum() <= room

    tried = [n for n in range(1, frames) if fits(np.linspace(0, duration, n).tolist())]
    found = most_frames(fits, np.linspace(0, duration, frames))
    assert found == max(tried, default=0)


def test_placeholders():
    assert prompts.strip_placeholder("<image>\nWho?") == "Who?"
    assert prompts.strip_placeholder(" Who is it? <video>") == "Who is it?"
    with pytest.raises(InputError, match="2 <image> or <video> placeholders"):
        prompts.strip_placeholder("<image>\nWho? <image>")
    for bad in ("<image>\nWho?", "Who?<|im_end|>"):
        with pytest.raises(InputError, match="only the template may set"):
            prompts.build_row(tiny_tokenizer(), [bad], [["a"]], 1, template=INFERENCE)
    row = prompts.build_row(tiny_tokenizer(), ["Who?"], [["<video>"]], 1, template=INFERENCE)
    assert row.target_mask.sum() == len("<video>") + 2
