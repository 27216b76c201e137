"""The adapter server over HTTP, with a real chain behind it: OpenAI's interface, and who may use what."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from wallet_chain import WalletChain, adapter, wallet_chain

from citrate_node.chain.adapter_factory import AdapterFactory
from citrate_node.errors import ConfigError
from citrate_node.protocol.adapter import AdapterConfig, AdapterWeights
from citrate_node.protocol.certificate import account_of
from citrate_node.runtime.adapters import connected, place_of
from citrate_node.runtime.serving_adapters import ServedAdapters
from citrate_node.runtime.serving_config import (
    CallerKey,
    LocalAdapter,
    ServeAccess,
    ServeConfig,
    ServeLimits,
    ServerPlace,
    load_serve_config,
    new_key,
)
from citrate_node.runtime.serving_engine import ServingEngine
from citrate_node.runtime.serving_http import AdapterServer, RequestError, parse_completion
from citrate_node.training.base_model import BaseModel


def strong(seed: int) -> AdapterWeights:
    """Factors large enough that the text differs from the base's."""
    weights = adapter(seed, 2, ("down_proj", "q_proj", "v_proj"))
    random = np.random.default_rng(seed)
    values = np.round(random.normal(0, 0.4, weights.values.shape) * 2**20).astype(np.int64) * 2**4
    return weights.with_values(weights.manifest, values)


@dataclasses.dataclass(frozen=True)
class World:
    chain: WalletChain
    ids: dict[str, str]
    """Name to adapter id; "two" has a second version, "noise" is no adapter, "foreign" of another base."""
    founder: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with wallet_chain(tmp_path_factory.mktemp("served")) as chain:
        key = chain.devnet.founder_key()

        async def create() -> dict[str, str]:
            factory = await AdapterFactory.connect(chain.rpc_url)
            try:
                base = adapter(1).config.base_model_id
                found = {}
                for name, data in (
                    ("one", strong(1).encode()),
                    ("two", strong(2).encode()),
                    ("noise", b"noise " * 20),
                ):
                    found[name] = (
                        "0x" + (await factory.create_adapter(key, base, name, data, 2)).adapter_id.hex()
                    )
                await factory.publish_version(key, bytes.fromhex(found["two"][2:]), strong(3).encode())
                old = strong(4)
                config = AdapterConfig(b"\x09" * 32, old.config.rank, old.config.alpha, old.config.targets)
                lying = AdapterWeights(config, old.manifest, old.values.copy())
                made = await factory.create_adapter(key, base, "foreign", lying.encode(), 2)
                return found | {"foreign": "0x" + made.adapter_id.hex()}
            finally:
                await factory.close()

        yield World(chain, asyncio.run(create()), "0x" + account_of(key).hex())


@asynccontextmanager
async def serving(
    world: World,
    tmp_path: Path,
    limits: ServeLimits | None = None,
    access: ServeAccess | None = None,
    **more: Any,
) -> AsyncIterator[tuple[httpx.AsyncClient, ServedAdapters]]:
    config = ServeConfig(
        ServerPlace(port=0, record=str(tmp_path / "record.jsonl")),
        limits or ServeLimits(),
        access or ServeAccess(),
        **more,
    )
    engine = ServingEngine(BaseModel.load())
    await engine.start()
    try:
        async with connected(place_of(world.chain.devnet.folder)) as desk:
            adapters = ServedAdapters(engine, desk, config)
            server = AdapterServer(engine, adapters, config)
            await server.start()
            try:
                async with httpx.AsyncClient(base_url=server.address, timeout=30) as client:
                    yield client, adapters
            finally:
                await server.stop()
    finally:
        await engine.stop()


async def complete(client: httpx.AsyncClient, model: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": "import os\n", "max_tokens": 12, "temperature": 0, **more}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    facts: dict[str, Any] = response.json()
    return facts


async def refused(client: httpx.AsyncClient, **body: Any) -> tuple[int, dict[str, Any]]:
    whole = {"model": "embedded", "prompt": "x", "max_tokens": 2, **body}
    response = await client.post("/v1/completions", json=whole)
    assert response.status_code >= 400, response.text
    return response.status_code, response.json()["error"]


async def test_each_request_gets_its_adapter_and_is_told_which(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (client, _):
        one, two = world.ids["one"], world.ids["two"]
        names = ("embedded", one, f"{two}@1", f"{two}@latest", two)
        answers = await asyncio.gather(*(complete(client, name) for name in names))
        texts = [answer["choices"][0]["text"] for answer in answers]
        assert texts[3] == texts[4]
        assert len(set(texts)) == 4
        assert [answer["citrate"]["version"] for answer in answers] == [None, 1, 1, 2, 2]
        assert answers[1]["citrate"] == {
            "base_model": "embedded",
            "base_model_id": BaseModel.load().base_model_id.hex(),
            "source": "chain",
            "adapter_id": one,
            "adapter_name": "one",
            "version": 1,
            "weights_hash": strong(1).digest().hex(),
            "cid": answers[1]["citrate"]["cid"],
        }
        assert answers[3]["citrate"]["weights_hash"] == strong(3).digest().hex()
        assert answers[3]["model"] == f"{two}@2"
        assert answers[0]["usage"] == {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22}
        listed = (await client.get("/v1/models")).json()["data"]
        assert sorted(row["id"] for row in listed) == sorted(["embedded", f"{one}@1", f"{two}@1", f"{two}@2"])


async def test_every_request_leaves_a_line_that_says_what_produced_which_text(
    world: World, tmp_path: Path
) -> None:
    async with serving(world, tmp_path) as (client, _):
        answer = await complete(client, world.ids["one"], seed=7)
    (line,) = (tmp_path / "record.jsonl").read_text().splitlines()
    record = json.loads(line)
    text = answer["choices"][0]["text"]
    assert record["choices"] == [
        {
            "completion_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "completion_tokens": 12,
            "finish_reason": "length",
        }
    ]
    assert (record["id"], record["seed"], record["ended"]) == (answer["id"], 7, "done")
    assert record["weights_hash"] == strong(1).digest().hex()
    assert "import os" not in line


async def test_a_record_that_cannot_be_written_stops_no_answer(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "record.jsonl").mkdir()
    async with serving(world, tmp_path) as (client, _):
        assert (await complete(client, "embedded"))["usage"]["completion_tokens"] == 12
    said = capsys.readouterr()
    assert "cannot write the runtime record" in said.err
    assert said.out == ""


async def test_a_streamed_answer_is_the_same_text_in_pieces(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (client, _):
        whole = await complete(client, world.ids["one"])
        body = {"model": world.ids["one"], "prompt": "import os\n", "max_tokens": 12, "temperature": 0}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert events[-1]["usage"]["completion_tokens"] == 12
    chunks = events[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert [
        chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"][0]["finish_reason"]
    ] == ["length"]
    assert all(chunk["citrate"] == whole["citrate"] for chunk in chunks)


async def test_a_stop_text_ends_the_answer_before_it(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (client, _):
        whole = (await complete(client, "embedded"))["choices"][0]["text"]
        stop = whole[4:6]
        answer = (await complete(client, "embedded", stop=[stop]))["choices"][0]
    assert answer == {
        "index": 0,
        "text": whole[: whole.find(stop)],
        "logprobs": None,
        "finish_reason": "stop",
    }


async def test_several_choices_with_probabilities_and_the_prompt_before_them(
    world: World, tmp_path: Path
) -> None:
    async with serving(world, tmp_path) as (client, _):
        asked = {"n": 3, "logprobs": 2, "echo": True, "temperature": 1.0, "seed": 5, "max_tokens": 6}
        answer = await complete(client, world.ids["one"], **asked)
        alone = await complete(client, world.ids["one"], **{**asked, "n": 1, "seed": 6})
        greedy = await complete(client, world.ids["one"], logprobs=1)
        scored = await complete(client, world.ids["one"], echo=True, logprobs=0, max_tokens=0)
        streamed: list[dict[str, Any]] = [{"text": "", "tokens": []} for _ in range(3)]
        body = {"model": world.ids["one"], "prompt": "import os\n", **asked, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    (choice,) = json.loads(line[6:])["choices"]
                    streamed[choice["index"]]["text"] += choice["text"]
                    streamed[choice["index"]]["tokens"] += choice["logprobs"]["tokens"]
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["text"] for choice in choices}) == 3
    assert choices[1]["text"] == alone["choices"][0]["text"]
    assert choices[1]["logprobs"]["tokens"] == alone["choices"][0]["logprobs"]["tokens"]
    assert answer["usage"] == {"prompt_tokens": 10, "completion_tokens": 18, "total_tokens": 28}
    for choice, parts in zip(choices, streamed, strict=True):
        told = choice["logprobs"]
        assert choice["text"].startswith("import os\n")
        assert {len(told[name]) for name in told} == {16}
        assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
        assert told["text_offset"][:10] == list(range(10))
        assert all(value < 0 for value in told["token_logprobs"][1:])
        assert parts == {"text": choice["text"], "tokens": told["tokens"]}
    told = greedy["choices"][0]["logprobs"]  # the likeliest token is the one that is taken
    assert [list(each.items()) for each in told["top_logprobs"]] == [
        [pair] for pair in zip(told["tokens"], told["token_logprobs"], strict=True)
    ]
    (only,) = scored["choices"]
    assert (only["text"], only["finish_reason"], scored["usage"]["completion_tokens"]) == (
        "import os\n",
        "length",
        0,
    )
    assert only["logprobs"]["token_logprobs"] == pytest.approx(
        choices[0]["logprobs"]["token_logprobs"][:10], abs=1e-4
    )


async def test_the_tokens_of_a_stop_text_are_not_told(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (client, _):
        whole = (await complete(client, "embedded"))["choices"][0]["text"]
        stop = whole[4:7]
        (choice,) = (await complete(client, "embedded", stop=stop, logprobs=0))["choices"]
    assert choice["text"] == whole[: whole.index(stop)]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


async def test_a_local_folder_is_served_by_its_name_and_called_unverified(
    world: World, tmp_path: Path
) -> None:
    """It is read again when it was trained again; nobody can name a folder that the config does not."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(strong(7).encode())
    local = (LocalAdapter("mine", str(folder)), LocalAdapter("gone", str(tmp_path / "gone")))
    keys = (
        CallerKey("all", hashlib.sha256(b"all").hexdigest()),
        CallerKey("few", hashlib.sha256(b"few").hexdigest(), (world.ids["one"],)),
    )
    async with serving(world, tmp_path, access=ServeAccess(keys=keys), local=local) as (client, _):
        client.headers["Authorization"] = "Bearer all"
        first = await complete(client, "local:mine")
        (folder / "adapter_model.safetensors").write_bytes(strong(8).encode())
        os.utime(folder / "adapter_model.safetensors", ns=(1, 1))
        second = await complete(client, "local:mine")
        refusals = [await refused(client, model=name) for name in ("local:other", str(folder), "local:gone")]
        client.headers["Authorization"] = "Bearer few"
        refusals.append(await refused(client, model="local:mine"))
    facts = first["citrate"]
    assert (facts["source"], facts["adapter_id"], facts["version"]) == ("unverified-local", None, None)
    assert (facts["adapter_name"], facts["weights_hash"]) == ("mine", strong(7).digest().hex())
    assert second["citrate"]["weights_hash"] == strong(8).digest().hex()
    assert first["choices"][0]["text"] != second["choices"][0]["text"]
    assert [(status, error["code"]) for status, error in refusals] == [
        (404, "model_not_found"),
        (404, "model_not_found"),
        (400, "adapter_refused"),
        (403, "adapter_not_allowed"),
    ]
    assert str(tmp_path) not in refusals[2][1]["message"]
    records = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [record["source"] for record in records] == ["unverified-local"] * 2


async def test_what_the_chain_does_not_confirm_is_not_loaded(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (client, adapters):
        for name, said in (
            ("noise", "is no adapter of this network"),
            ("foreign", "made for base model 0909"),
        ):
            status, error = await refused(client, model=world.ids[name])
            assert status == 400
            assert said in error["message"]
            assert error["type"] == "invalid_request_error"
        for model in ("gpt-4", "0x12", "0x" + "ab" * 32, f"{world.ids['one']}@9"):
            status, error = await refused(client, model=model)
            assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert adapters.loaded == []


async def test_creators_adapters_and_keys_decide_who_may_use_what(world: World, tmp_path: Path) -> None:
    one, two = world.ids["one"], world.ids["two"]
    key, entry = new_key("alice")
    narrow, narrow_entry = new_key("bob")
    (tmp_path / "serve.toml").write_text(entry + narrow_entry + f'adapters = ["{one}"]\n')
    access = load_serve_config(tmp_path / "serve.toml").access
    assert key not in (tmp_path / "serve.toml").read_text()

    async with serving(world, tmp_path, access=access) as (client, _):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": key}):
            response = await client.post("/v1/completions", json={"model": "embedded"}, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await client.get("/v1/models")).status_code == 401
        client.headers["Authorization"] = f"Bearer {key}"
        assert (await complete(client, two))["citrate"]["adapter_id"] == two
        client.headers["Authorization"] = f"Bearer {narrow}"
        assert (await complete(client, one))["citrate"]["adapter_id"] == one
        status, error = await refused(client, model=two)
        assert (status, error["code"]) == (403, "adapter_not_allowed")
    records = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [record["caller"] for record in records] == ["alice", "bob"]

    async with serving(world, tmp_path, access=ServeAccess(adapters=(one,))) as (client, _):
        await complete(client, one)
        assert (await refused(client, model=two))[0] == 403
    async with serving(world, tmp_path, access=ServeAccess(creators=("0x" + "11" * 20,))) as (client, _):
        assert (await refused(client, model=one))[0] == 403
    async with serving(world, tmp_path, access=ServeAccess(creators=(world.founder,))) as (client, _):
        await complete(client, one)


async def test_limits_are_named_in_openais_shape(world: World, tmp_path: Path) -> None:
    limits = ServeLimits(prompt_tokens_max=8, tokens_max=4, body_bytes_max=500, requests_max=1)
    async with serving(world, tmp_path, limits) as (client, _):
        status, error = await refused(client, prompt="123456789")
        assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
        status, error = await refused(client, max_tokens=5)
        assert error == {
            "message": "max_tokens is 5, it must lie from 1 to 4",
            "type": "invalid_request_error",
            "param": "max_tokens",
            "code": None,
        }
        status, error = await refused(client, prompt="x" * 600)
        assert (status, error["code"]) == (413, "body_too_large")
        for data in (b"", b"{", b"[]", b"\xff", b"[" * 400):
            response = await client.post("/v1/completions", content=data)
            assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
        assert (await client.get("/nowhere")).json()["error"]["type"] == "invalid_request_error"
    slow = ServeLimits(request_seconds_max=0.001)
    async with serving(world, tmp_path, slow) as (client, _):
        status, error = await refused(client, max_tokens=200)
        assert (status, error["code"]) == (504, "timeout")


async def test_more_requests_than_the_limit_are_turned_away(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path, ServeLimits(requests_max=2)) as (client, _):
        body = {"model": "embedded", "prompt": "x", "max_tokens": 60}
        answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(6)))
        found = sorted(answer.status_code for answer in answers)
        assert set(found) == {200, 429}
        busy = next(answer for answer in answers if answer.status_code == 429).json()["error"]
        assert (busy["type"], busy["code"]) == ("rate_limit_error", "busy")
        assert (await client.get("/health")).json() == {"status": "ok", "running": 0}


async def test_the_longest_unused_adapter_makes_room(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path, ServeLimits(adapters_max=2)) as (client, adapters):
        one, two = world.ids["one"], world.ids["two"]
        for name in (one, f"{two}@1", one, f"{two}@2"):
            await complete(client, name)
        assert [each.key for each in adapters.loaded] == [f"{one}@1", f"{two}@2"]


async def test_a_caller_who_goes_away_frees_the_place(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path, ServeLimits(requests_max=1)) as (client, _):
        body = {"model": "embedded", "prompt": "x", "max_tokens": 256, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            await anext(response.aiter_lines())
        for _ in range(500):
            if (await client.get("/health")).json()["running"] == 0:
                break
            await asyncio.sleep(0.01)
        await complete(client, "embedded")
    records = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [record["ended"] for record in records] == ["cancelled", "done"]
    assert records[0]["completion_tokens"] < 256


OPENAI_PYTHON = os.environ.get("CITRATE_OPENAI_PYTHON", "")
OPENAI_PROGRAM = """
import json, sys
from openai import BadRequestError, NotFoundError, OpenAI
url, model = sys.argv[1:]
client = OpenAI(base_url=url, api_key="none", max_retries=0)
asked = dict(model=model, prompt="import os\\n", max_tokens=8, temperature=0)
whole = client.completions.create(**asked)
parts = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
errors = []
for change in ({"model": "gpt-4"}, {"suffix": "x"}):
    try:
        client.completions.create(**{**asked, **change})
    except (BadRequestError, NotFoundError) as error:
        errors.append([error.status_code, error.param])
two = client.completions.create(**asked, n=2, logprobs=1, echo=True)
assert [len(choice.logprobs.tokens) for choice in two.choices] == [18, 18]
assert two.choices[1].text.startswith("import os")
models = [model.id for model in client.models.list()]
print(json.dumps([whole.choices[0].text == "".join(parts), whole.usage.total_tokens, models, errors]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not OPENAI_PYTHON, reason="CITRATE_OPENAI_PYTHON names no python that has the openai package"
)
async def test_openais_own_client_completes_streams_lists_and_understands_errors(
    world: World, tmp_path: Path
) -> None:
    async with serving(world, tmp_path) as (client, _):
        command = [OPENAI_PYTHON, "-c", OPENAI_PROGRAM, f"{client.base_url}/v1", world.ids["one"]]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert json.loads(out) == [
        True,
        18,
        ["embedded", f"{world.ids['one']}@1"],
        [[404, "model"], [400, "suffix"]],
    ]


def test_the_documented_configuration_is_the_default_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (tmp_path / "serve.toml").write_text(text.split("```toml")[1].split("```")[0])
    found = load_serve_config(tmp_path / "serve.toml")
    assert found == ServeConfig(access=ServeAccess(keys=(CallerKey("alice", "00" * 32),)))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"model": 3}, "model"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"colour": "red"}, "colour"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream_options": 1}, "stream_options"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(body: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_completion({"model": "embedded", "prompt": "x", **body}, ServeLimits(tokens_max=10))
    assert (caught.value.status, caught.value.body["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nport = '1'", "server.port"),
        ("[server]\ncolour = 1", "server.colour"),
        ("[limits]\nrequests_max = 0", "requests_max is 0"),
        ("[access]\ncreators = ['0x12']", "is no address"),
        ("[[access.keys]]\nname = 'a'\nsha256 = 'the key itself'", "64 hex digits"),
        ("[server", "cannot read"),
        ("[stores]\ngateways = ['ipfs.io']", "stores"),
        ("[[local]]\nname = 'a b'\nfolder = 'x'", "is no name"),
        ("[[local]]\nname = 'a'\nfolder = 'x'\n" * 2, "two local folders have the name a"),
        (
            f"[[access.keys]]\nname = 'a'\nsha256 = '{'0' * 64}'\nadapters = ['local:b']",
            "no .*local.* has that name",
        ),
    ],
)
def test_a_config_that_is_wrong_names_the_key(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_serve_config(tmp_path / "serve.toml")


def test_a_port_that_others_reach_wants_keys() -> None:
    with pytest.raises(ConfigError, match="can be reached by others"):
        ServeConfig(ServerPlace(host="0.0.0.0")).require_safe()
    key = CallerKey("a", "ab" * 32)
    ServeConfig(ServerPlace(host="0.0.0.0"), access=ServeAccess(keys=(key,))).require_safe()
