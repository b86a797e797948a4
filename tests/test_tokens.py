"""Sources of tokens; bad files by number, B-078 to B-092."""

import asyncio
import os
import random
import traceback
import tracemalloc
from pathlib import Path

import pytest

from mxlab import tokens as tk
from mxlab.errors import ConfigError
from mxlab.tokens import SessionToken, minted, read_token_file, sampled, source

CANARY = "CANARY-0123456789abcdef"
#: The session token that MX's documentation shows.
SAMPLE = "CWforZl1Vn2vC_v6H4rnQRT1DoWpDouJAV-_5TBmiQRAtA8rsOG_BoajTiOSsL0A3bd-bmHXlA-eQzc9ywItKg"


@pytest.fixture
def file(tmp_path):
    """``file(content)`` → the path of a private file."""

    def made(content, mode=0o600, name="tokens.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    return made


async def taken(tokens, seed=0):
    return [turn async for turn in source(tokens).turns(seed)]


def names(turns):
    return [turn.user for turn in turns]


#: number → (content, what the message must say)
MALFORMED = {
    "B-080": ("", "holds no tokens"),
    "B-080-header": ("token,user\n", "holds no tokens"),
    "B-082-le": (f"{CANARY}\n".encode("utf-16"), "UTF-8"),
    "B-082-no-mark": (f"{CANARY}\n".encode("utf-16-le"), "line 1: 46 characters, not printable ASCII"),
    "B-082-be": (b"\xfe\xff" + f"{CANARY}\n".encode("utf-16-be"), "UTF-8"),
    "B-083-space": (f"good\n{CANARY} x\n", "line 2: 25 characters"),
    "B-083-quote": (f'token,user\n"{CANARY}""\n",u\n', "line 2: 1 columns where the header has 2"),
    "B-083-nul": (f"{CANARY}\0\n", "line 1: 24 characters"),
    "B-083-accent": (f"{CANARY}é\n", "line 1: 24 characters"),
    "B-083-control": (f"token,user\n{CANARY}\x07,u\n", "line 2: 24 characters"),
    "B-083-latin": (f"{CANARY}\n".encode() + b"caf\xe9\n", "line 2: not UTF-8"),
    "B-083-return": (f"{CANARY}\r{CANARY}\n", "line 1: 47 characters"),
    "B-083-return-quoted": (f'token,user\n"{CANARY}\rx",u\n', "line 2: 25 characters"),
    "B-084-long": (CANARY + "x" * 490 + "\n", "line 1: 513 characters"),
    "B-085": ("<api-key>\n", "line 1: 9 characters that are no session token"),
    "B-085-sample": (SAMPLE + "\n", "line 1: 86 characters that are no session token"),
    "B-085-sample-of-a-user": (f"token,user\n{CANARY},u\n{SAMPLE},v\n", "line 3: 86 characters"),
    "B-088": (f"session,user\n{CANARY},u\n", "first line of 2 columns has no column named token"),
    "B-088-upper": (f"Token,User\n{CANARY},u\n", "no column named token; give token"),
    "B-088-alone": (f"session_token\n{CANARY}\n", "first line of 1 columns has no column named token"),
    "B-088-semicolons": (f"token;user\n{CANARY};u\n", "with commas between"),
    "B-088-tabs": (f"token\tuser\n{CANARY}\tu\n", "with commas between"),
    "B-088-twice": (f"token,token\n{CANARY},u\n", "each once"),
    "B-088-words": (f"token,a b\n{CANARY},u\n", "words"),
    "columns": (f"token,user\n{CANARY}\n", "line 2: 1 columns"),
    "no-token": ("token,user\n,u\n", "line 2: 0 characters"),
    "B-091-gzip": (b"\x1f\x8b\x08\x00rest", "compressed"),
    "B-091-zip": (b"PK\x03\x04rest", "compressed"),
}


@pytest.mark.parametrize("number", MALFORMED)
def test_a_malformed_file_is_refused_by_line_and_length_never_by_content(file, number):
    content, says = MALFORMED[number]
    path = file(content)
    with pytest.raises(ConfigError) as caught:
        read_token_file(path)
    assert str(caught.value).startswith(f"tokens: {path}")
    assert says in str(caught.value)
    assert SAMPLE not in str(caught.value)
    seen = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    ours = seen.partition("in read_token_file")[2]
    assert ours
    assert "CANARY" not in str(caught.value) + ours


def test_b078_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, says in {"none": "No such file", ".": "regular", "pipe": "regular"}.items():
        with pytest.raises(ConfigError, match=rf"^tokens: .*{says}.*; give the path of") as caught:
            read_token_file(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_b078_a_file_that_cannot_be_read_is_refused(file, monkeypatch):
    path = file(CANARY, 0o200)
    monkeypatch.setattr(
        os, "access", lambda asked, mode: (asked, mode) != (path, os.R_OK)
    )  # root may read it
    with pytest.raises(ConfigError, match=f"^tokens: {path} is not yours to read; run: chmod 600 {path}"):
        read_token_file(path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_b079_a_file_that_others_can_read_is_refused_with_the_command_that_helps(file, mode):
    path = file(CANARY, mode)
    with pytest.raises(ConfigError, match=f"^tokens: {path} can be read by others; run: chmod 600 {path}$"):
        read_token_file(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
async def test_b081_blank_lines_comments_marks_and_trailing_spaces_are_passed_over(file, end, mark):
    lines = ["# from the vault", "", "  token , user,cohort ", "aaaa,u1,x ", "", "#bbbb,u2,y", " cccc,u3, z"]
    turns = await taken(file(mark + end.join(lines) + end))
    assert {turn.user: (turn.token.reveal(), turn.token.columns["cohort"]) for turn in turns} == {
        "u1": ("aaaa", "x"),
        "u3": ("cccc", "z"),
    }


@pytest.mark.parametrize("text", ["x", "x" * 512, 'a"b', "token-1"])
async def test_b083_b084_any_printable_text_of_1_to_512_characters_is_a_token(file, text):
    assert [turn.token.reveal() for turn in await taken(file(f"{text}\n"))] == [text]


async def test_a_plain_list_with_a_mark_keeps_its_first_line(file):
    assert {turn.token.reveal() for turn in await taken(file("\ufeffaaaa\nbbbb\n"))} == {"aaaa", "bbbb"}


def test_b086_b087_a_session_is_the_users_else_the_tokens():
    """The collection passes over a session that has had its turn."""
    key = bytes(32)
    assert SessionToken("same").pseudonym(key) == SessionToken("same").pseudonym(key)
    assert SessionToken("same").pseudonym(key) != SessionToken("other").pseudonym(key)
    assert SessionToken("a", user="u").pseudonym(key) == SessionToken("b", user="u").pseudonym(key)


async def as_list(lines, file):
    return [SessionToken(text, user=user or None) for text, user in lines]


async def as_file(lines, file):
    return file("token,user\n" + "".join(f"{text},{user}\n" for text, user in lines))


@pytest.mark.parametrize("kind", [as_list, as_file])
async def test_b086_a_token_under_two_names_is_asked_once_and_both_are_said(file, kind):
    tokens = await kind([(CANARY, "ann"), ("other", "cid"), (CANARY, "bob")], file)
    with pytest.warns(
        UserWarning, match=r"tokens: 1 tokens come again under another name.*ann and bob"
    ) as warned:
        whole = source(tokens)
    assert CANARY not in str(warned[0].message)
    assert {turn.user: turn.token.reveal() for turn in await taken(whole)} == {"bob": CANARY, "cid": "other"}
    assert len(whole) == 2


@pytest.mark.parametrize("kind", [as_list, as_file])
async def test_b087_of_a_user_with_two_tokens_the_later_is_used(file, kind):
    tokens = await kind([("old", "ann"), ("x", "bob"), ("new", "ann"), ("new", "ann"), ("y", "")], file)
    with pytest.warns(UserWarning, match=r"tokens: 2 users come again with a later token.*ann"):
        whole = source(tokens)
    assert {turn.user: turn.token.reveal() for turn in await taken(whole)} == {
        "ann": "new", "bob": "x", None: "y"
    }  # fmt: skip


async def test_b086_b087_without_names_a_token_that_comes_twice_is_asked_once(file):
    with pytest.warns(UserWarning, match="1 tokens come again"):
        assert len(source(file("aaaa\nbbbb\naaaa\n"))) == 2


@pytest.mark.slow
async def test_b089_a_million_lines_are_held_as_positions(file):
    path = file("".join(f"token-{n:060d}\n" for n in range(1_000_001)))
    tracemalloc.start()
    turns = source(path).turns(0)
    first = [await anext(turns) for _ in range(10)]
    await turns.aclose()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({turn.token.reveal() for turn in first}) == 10
    assert peak < 150 * 2**20


def grow(path):
    path.write_text("aaaa\nbbbb\ncccc\n")


def rewrite(path):
    path.write_text("aaaa\ncccc\n")
    os.utime(path, ns=(0, 0))


def replace(path):
    before = path.stat()
    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes())
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(path)


@pytest.mark.parametrize("change", [grow, rewrite, replace])
async def test_b090_a_file_that_changes_after_it_was_read_is_refused(file, change):
    path = file("aaaa\nbbbb\n")
    tokens = read_token_file(path)
    change(path)
    with pytest.raises(ConfigError, match=f"^tokens: {path} changed since it was read; start again$"):
        await anext(tokens.turns(0))


@pytest.mark.parametrize("change", [grow, rewrite])
async def test_b090_a_file_that_changes_during_the_run_is_not_read_on(file, change):
    path = file("aaaa\nbbbb\n")
    turns = read_token_file(path).turns(0)
    assert (await anext(turns)).token.reveal() in {"aaaa", "bbbb"}
    change(path)
    with pytest.raises(ConfigError, match="changed since it was read; start again"):
        await anext(turns)


def test_what_brings_no_tokens_is_refused():
    for tokens in ([], 5, None, object()):
        with pytest.raises(ConfigError):
            source(tokens)
    with pytest.raises(ConfigError):
        minted([], SessionToken)


@pytest.mark.parametrize("bad", ["text", None, 5, b"bytes"])
async def test_anything_but_a_session_token_in_a_source_is_refused(bad):
    for tokens in ([bad], iter([bad])):
        with pytest.raises(ConfigError, match="SessionToken"):
            await taken(tokens)


@pytest.mark.parametrize("text", ["", "a b", "a\n", "é", "a\0", None, 5, b"x"])
def test_a_token_is_printable_ascii_without_spaces(text):
    with pytest.raises(ConfigError, match="characters"):
        SessionToken(text)


async def test_every_kind_of_source_brings_every_token_once(file):
    texts = [f"t{n}" for n in range(10)]

    async def each():
        for text in texts:
            yield SessionToken(text)

    left, left_async = iter(texts), iter(texts)

    def call():
        return next((SessionToken(text) for text in left), None)

    async def call_async():
        await asyncio.sleep(0)
        return next((SessionToken(text) for text in left_async), None)

    for tokens in (
        [SessionToken(text) for text in texts],
        (SessionToken(text) for text in texts),
        each(),
        call,
        call_async,
        file("\n".join(texts)),
    ):
        assert sorted(turn.token.reveal() for turn in await taken(tokens)) == texts


async def test_sources_with_a_length_come_in_the_order_of_the_seed(file):
    for tokens in (
        file("\n".join(f"t{n}" for n in range(50))),
        minted([f"u{n}" for n in range(50)], SessionToken),
    ):
        whole = source(tokens)
        orders = [
            [repr(turn.user or turn.token.reveal()) async for turn in whole.turns(seed)] for seed in (1, 1, 2)
        ]
        assert orders[0] == orders[1] != orders[2]
        assert sorted(orders[0]) == sorted(orders[2])
        assert (whole.order, len(whole)) == ("random", 50)


async def test_a_sample_is_a_part_of_the_source_each_user_once():
    whole = minted([f"u{n}" for n in range(100)], SessionToken)
    part = [names([turn async for turn in sampled(whole, 10).turns(seed)]) for seed in range(200)]
    assert {len(set(users)) for users in part} == {10}
    often = [sum(f"u{n}" in users for users in part) for n in range(100)]
    assert 5 < min(often) <= max(often) < 40
    assert len(sampled(whole, 1000)) == 100
    for size in (0, -1):
        with pytest.raises(ConfigError):
            sampled(whole, size)
    with pytest.raises(ConfigError, match="length"):
        sampled(source(iter([])), 5)


async def test_a_source_that_is_left_early_is_closed(file):
    turns = sampled(source(file("\n".join(f"t{n}" for n in range(10)))), 2).turns(0)
    assert len([turn async for turn in turns]) == 2
    assert not any("tokens.csv" in link for link in _open_files())


def _open_files():
    return [str(each.resolve()) for each in Path("/proc/self/fd").glob("*")]


async def test_a_mint_that_returns_no_token_is_told_so():
    with pytest.raises(ConfigError, match="str"):
        await tk.made(lambda user: user, "u")


def test_shuffling_needs_no_list_of_users():
    order = tk._shuffled(1000, random.Random(0))
    assert sorted(order) == list(range(1000))
    assert order.itemsize == 8
