"""Text completions: lists of prompts, several answers, echo and the log-probabilities of prompts, bytes of tokens."""

from scripted import World
from test_app import error, events


def test_a_list_of_prompts_is_answered_in_order():
    world = World("one", "two", "three", "four")
    for prompts in (["a", "bc"], [[5, 6], [7]]):
        world.engine.asked.clear()
        body = world.complete(prompts).json()
        assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "one"), (1, "two")]
        encode = world.tokens.tokenizer.encode
        encoded = [encode(p, add_special_tokens=False) if isinstance(p, str) else p for p in prompts]
        assert [prompt for prompt, _ in world.engine.asked] == encoded
        num_tokens = sum(len(world.tokens.tokenizer.encode(text, add_special_tokens=False)) for text in ("one", "two"))
        asked = sum(len(prompt) for prompt, _ in world.engine.asked)
        assert body["usage"] == {
            "prompt_tokens": asked,
            "completion_tokens": num_tokens,
            "total_tokens": asked + num_tokens,
        }


def test_lists_are_streamed_with_the_index_of_each_piece():
    world = World("one", "twenty-two")
    found, is_done = events(world.complete(["a", "b"], stream=True, n=1, stream_options={"include_usage": True}))
    texts = {0: "", 1: ""}
    for event in found[:-1]:
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert is_done and texts == {0: "one", 1: "twenty-two"}
    whole = World("one", "twenty-two").complete(["a", "b"]).json()
    assert found[-1]["usage"] == whole["usage"] and found[-1]["choices"] == []
    ends = [c["index"] for e in found[:-1] for c in e["choices"] if c["finish_reason"]]
    assert sorted(ends) == [0, 1]


def test_several_answers_to_each_prompt_have_seeds_of_their_own():
    world = World("a0", "a1", "b0", "b1")
    body = world.complete(["a", "b"], n=2, best_of=2, seed=7).json()
    assert [choice["text"] for choice in body["choices"]] == ["a0", "a1", "b0", "b1"]
    assert [sampling.seed for _, sampling in world.engine.asked] == [7, 8, 7, 8]
    assert body["usage"]["prompt_tokens"] == 2
    chat = World("x", "y")
    body = chat.chat(n=2).json()
    assert [(c["index"], c["message"]["content"]) for c in body["choices"]] == [(0, "x"), (1, "y")]
    found, _ = events(chat.chat(n=2, stream=True))
    assert {c["index"] for e in found for c in e["choices"]} == {0, 1}


def test_too_many_answers_and_wrong_prompts_are_refused():
    world = World()
    assert "are more than 128 answers" in error(world.complete(["a"] * 65, n=2), 400, "invalid_value", "prompt")
    assert "best_of=3 is not offered" in error(world.complete(best_of=3, n=2), 400, "unsupported_parameter", "best_of")
    wanted = "prompt: must be a text, a list of texts, a list of token ids or a list of such lists, none of them empty"
    for wrong in ([], ["a", 1], [[1], []], [[1], "a"], {"a": 1}, 5, [1.5], [True]):
        assert error(world.complete(wrong), 400, "invalid_type", "prompt") == wanted
    error(world.complete([[1], [10**6]]), 400, "invalid_value", "prompt")
    assert error(world.complete(""), 400, "invalid_value", "prompt") == (
        "prompt: it has no token; write at least one character"
    )
    assert not world.engine.asked


def test_when_one_of_several_answers_fails_the_request_does():
    world = World(refuses="the schema is not one")
    assert error(world.complete(["a", "b"]), 400, "invalid_value") == "the schema is not one"
    found, is_done = events(world.complete(["a", "b"], stream=True))
    assert found[-1]["error"]["message"] == "the schema is not one" and not is_done
    constrained = {"response_format": {"type": "json_object"}, "stream": True}
    assert error(world.complete(["a", "b"], **constrained), 400, "invalid_value") == "the schema is not one"
    assert error(world.chat(**constrained), 400, "invalid_value") == "the schema is not one"
    allowed = World("{}", "[]")
    found, is_done = events(allowed.complete(["a", "b"], **constrained))
    assert is_done and "".join(event["choices"][0]["text"] for event in found if event["choices"][0]["index"]) == "[]"


def test_a_scored_prompt_has_an_entry_for_the_generated_token_even_if_that_ends_the_answer():
    world = World()
    world.complete(echo=True, logprobs=1, max_tokens=1)
    world.complete(echo=True, logprobs=1, max_tokens=2)
    world.complete(logprobs=1, max_tokens=1)
    assert [sampling.ignore_eos for _, sampling in world.engine.asked] == [True, False, False]


def test_echo_begins_with_the_prompt_and_its_log_probabilities():
    world = World("fine")
    prompt = "Zürich, miss 日"
    ids = world.tokens.tokenizer.encode(prompt, add_special_tokens=False)
    for given in (prompt, ids):
        [choice] = world.complete(given, echo=True, logprobs=1, max_tokens=1).json()["choices"]
        found = choice["logprobs"]
        num_answer = len(found["tokens"]) - len(ids)
        assert choice["text"] == prompt + "fine" and num_answer > 0
        assert {len(values) for values in found.values()} == {len(ids) + num_answer}
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        assert all(value < 0 for value in found["token_logprobs"][1:])
        assert found["token_logprobs"][1] in found["top_logprobs"][1].values()
        assert found["text_offset"][0] == 0 and found["text_offset"] == sorted(found["text_offset"])
        assert found["text_offset"][len(ids)] == len(prompt)
        for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
            assert token.startswith("bytes:") or choice["text"].startswith(token, offset)


def test_echo_reads_only_the_prompt_with_max_tokens_0_and_is_streamed():
    world = World("fine")
    [choice] = world.complete("miss", echo=True, logprobs=0, max_tokens=0).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("miss", "length")
    assert len(choice["logprobs"]["tokens"]) == len(world.engine.asked[-1][0])
    assert world.engine.asked[-1][1].num_prompt_logprobs == 0
    world.complete("miss", logprobs=1)
    assert world.engine.asked[-1][1].num_prompt_logprobs is None
    found, _ = events(world.complete("miss", echo=True, stream=True))
    assert "".join(event["choices"][0]["text"] for event in found) == "missfine"
    error(world.chat(max_tokens=0), 400, "invalid_value", "max_tokens")


def test_an_engine_that_scores_no_prompts_refuses_to():
    world = World()
    world.engine.scores_prompts = False
    message = error(world.complete(echo=True, logprobs=1), 400, "unsupported_parameter", "echo")
    assert message.startswith("log-probabilities of the prompt (echo with logprobs) are not offered for this model")
    assert world.complete(echo=True).status_code == 200


def test_tokens_that_are_parts_of_characters_are_given_by_their_bytes():
    world = World("日")
    ids = world.tokens.tokenizer.encode("日", add_special_tokens=False)
    content = world.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == len(ids) > 1
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == "日"
    assert bytes(content[0]["top_logprobs"][1]["bytes"]) == bytes(content[0]["bytes"])
    [choice] = world.complete(logprobs=2).json()["choices"]
    assert choice["logprobs"]["tokens"][0].startswith(r"bytes:\x")
    assert choice["logprobs"]["text_offset"] == [0] * len(ids)
