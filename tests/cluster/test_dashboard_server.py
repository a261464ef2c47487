"""The dashboard's answers: what it serves, to whom, and what it refuses."""

import base64
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from cluster.dashboard import server
from cluster.dashboard.guard import check_token, is_loopback
from cluster.dashboard.library import RunLibrary
from cluster.dashboard.server import PAGE, build_app
from speechsum import cli, commands
from speechsum.errors import UserError
from speechsum.metrics import METRICS
from tests.cluster.fake_runs import INJECTED, append, figures, make_run, sample_row, write_data

TOKEN = "0123456789abcdef"


@pytest.fixture
def library(tmp_path: Path) -> RunLibrary:
    data = write_data(tmp_path / "data")
    folder = make_run(tmp_path / "runs/made", data)
    append(folder.samples, [sample_row(99, "reward", 2, str(tmp_path / "data/../secret.wav"))])
    (tmp_path / "secret.wav").write_bytes((data / "p1.wav").read_bytes())
    return RunLibrary([tmp_path / "runs"])


@pytest.fixture
def client(library: RunLibrary) -> TestClient:
    return TestClient(build_app(library), base_url="http://127.0.0.1:8280")


def recording(client: TestClient, prompt: str) -> str:
    found = client.get("/api/runs/made/groups", params={"prompt": prompt, "stage": "reward"}).json()["groups"]
    return f"/api/runs/made/groups/{found[0]['id']}/recording"


# --- content -------------------------------------------------------------------------------------------------------


def test_runs_steps_and_groups(client: TestClient, tmp_path: Path) -> None:
    (run,) = client.get("/api/runs").json()
    assert (run["id"], run["step"], run["done"]) == ("made", 3, 12)
    first = client.get("/api/runs/made/steps").json()
    assert len(first["rows"]) == 12
    append(tmp_path / "runs/made/metrics.jsonl", [figures("reward", 4)])
    more = client.get("/api/runs/made/steps", params={"generation": first["generation"], "start": 12}).json()
    assert [row["step"] for row in more["rows"]] == [4]
    found = client.get("/api/runs/made/groups", params={"stage": "reward", "gate": "echo"}).json()
    assert [g["prompt_id"] for g in found["groups"]] == ["p4"]
    group = client.get(f"/api/runs/made/groups/{found['groups'][0]['id']}").json()
    assert [s["fate"] for s in group["summaries"]] == ["trained", "judge_failed", "trained", "trained"]
    assert client.get("/api/runs/made/criteria").json()[0]["criteria"] == {"clear": 1.0, "faithful": 0.375}
    assert client.get("/api/runs/made/details").json()["config"]["name"] == "made"
    assert set(METRICS) < set(client.get("/api/metrics").json())


def test_what_a_model_wrote_travels_as_json_only(client: TestClient) -> None:
    answer = client.get("/api/runs/made/groups", params={"text": "onerror"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["groups"][0]["best"] == INJECTED
    assert "innerHTML" not in "".join(path.read_text() for path in PAGE.glob("*.js"))


def test_wrong_questions_are_answered_in_a_sentence(client: TestClient) -> None:
    wrong = client.get("/api/runs/made/groups", params={"step_to": "x"})
    assert (wrong.status_code, wrong.json()["error"].split(";")[0]) == (400, "step_to = 'x' is not a number")
    for path in ("/api/runs/none/steps", "/api/runs/made/groups/0000", "/api/runs/made/groups/0000/recording"):
        assert client.get(path).status_code == 404, path
    assert client.post("/api/runs").status_code == 405


# --- recordings ----------------------------------------------------------------------------------------------------


def test_a_recording_whole_and_in_parts(client: TestClient, tmp_path: Path) -> None:
    content, path = (tmp_path / "data/p4.wav").read_bytes(), recording(client, "p4")
    whole = client.get(path)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, content, "audio/wav")
    assert whole.headers["accept-ranges"] == "bytes"
    size = len(content)
    for asked, first, last in (
        ("bytes=0-9", 0, 9), ("bytes=100-", 100, size - 1), ("bytes=-10", size - 10, size - 1),
        (f"bytes={size - 1}-{size + 50}", size - 1, size - 1),
    ):  # fmt: skip
        part = client.get(path, headers={"Range": asked})
        assert (part.status_code, part.content) == (206, content[first : last + 1]), asked
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
    for asked in ("bytes=5-4", "bytes=-", "lines=1-2", "bytes=0-1,4-5", "bytes=x"):
        assert client.get(path, headers={"Range": asked}).content == content, asked
    for asked in (f"bytes={size}-", "bytes=-0"):
        refused = client.get(path, headers={"Range": asked})
        assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{size}"), asked


def test_no_request_names_a_file(client: TestClient) -> None:
    refused = client.get(recording(client, "p99"))
    assert refused.status_code == 404
    assert "outside the run's data root" in refused.json()["error"]
    group = recording(client, "p4").split("/")[-2]
    for path in (
        "/api/runs/made/groups/..%2f..%2fconfig.json/recording", "/api/runs/..%2f..%2fsecret/steps",
        "/page/..%2fserver.py", "/page/%2e%2e/server.py", "/page//etc/passwd", "/page/", "/config.json",
        f"/api/runs/made/groups/{group}/recording/../../../../../etc/passwd",
    ):  # fmt: skip
        assert client.get(path).status_code == 404, path
    assert client.get(f"/api/runs/made/groups/{group}", params={"path": "/etc/passwd"}).json()["prompt_id"] == "p4"


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_and_all_it_names_come_from_this_server(client: TestClient) -> None:
    page = client.get("/").text
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert {"/plotly.min.js", "/page/main.js", "/page/style.css"} <= set(named)
    for path in [name for name in named if not name.startswith("data:")]:
        assert client.get(path).status_code == 200, path
    assert len(client.get("/plotly.min.js").content) > 1_000_000
    for script in PAGE.glob("*.js"):
        text = script.read_text()
        assert len(text.splitlines()) < 250
        assert "http://" not in text
        assert "https://" not in text
        for module in re.findall(r'from "\./([^"]+)"', text):
            assert client.get(f"/page/{module}").status_code == 200, module


def test_every_answer_carries_the_policy(client: TestClient) -> None:
    for path, headers in (("/", {}), ("/api/runs", {}), ("/nothing", {}), ("/", {"host": "evil.example"})):
        answer = client.get(path, headers=headers)
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert not re.search(r"unsafe|https?:|\*", answer.headers["content-security-policy"])
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/api/runs").headers["cache-control"] == "no-store"


# --- who may look --------------------------------------------------------------------------------------------------


def test_on_loopback_another_host_name_is_a_foreign_page(library: RunLibrary) -> None:
    client = TestClient(build_app(library), base_url="http://127.0.0.1")
    for host in ("127.0.0.1", "127.0.0.1:8280", "localhost:8280", "[::1]:8280"):
        assert client.get("/api/runs", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8280", "", "[::1"):
        assert client.get("/api/runs", headers={"host": host}).status_code == 400, host


def basic(password: str, user: str = "anyone") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_a_token_is_asked_for_on_every_path(library: RunLibrary) -> None:
    client = TestClient(build_app(library, host="0.0.0.0", token=TOKEN), base_url="http://box.example:8280")
    for path in ("/", "/api/runs", "/page/main.js", "/plotly.min.js", "/nothing"):
        refused = client.get(path)
        assert refused.status_code == 401, path
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert "content-security-policy" in refused.headers
    for good in (basic(TOKEN), basic(TOKEN, user=""), f"Bearer {TOKEN}", f"bearer {TOKEN}"):
        assert client.get("/api/runs", headers={"Authorization": good}).status_code == 200, good
    for bad in (
        basic(""), basic(TOKEN[:-1]), basic(f"{TOKEN}0"), f"Bearer {TOKEN[:-1]}", "Bearer ", "Basic ???",
        f"Digest {TOKEN}", TOKEN, basic("é" * 16),
    ):  # fmt: skip
        assert client.get("/api/runs", headers={"Authorization": bad}).status_code == 401, bad


def test_a_token_on_loopback_is_asked_for_too(library: RunLibrary) -> None:
    client = TestClient(build_app(library, token=TOKEN), base_url="http://localhost")
    assert client.get("/").status_code == 401
    assert client.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_network_address_needs_a_token_that_cannot_be_guessed() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]")] == [True] * 5
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "box.example", "")] == [False] * 5
    check_token("127.0.0.1", "")
    check_token("0.0.0.0", TOKEN)
    with pytest.raises(UserError, match="needs a token: set SPEECHSUM_DASHBOARD_TOKEN"):
        check_token("0.0.0.0", "")
    with pytest.raises(UserError, match="at least 16 ASCII characters"):
        check_token("127.0.0.1", "short")


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_told_to_stop(
    library: RunLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPEECHSUM_DASHBOARD_TOKEN", TOKEN)
    servers: list[uvicorn.Server] = []
    said: list[str] = []
    up = threading.Event()

    class Watched(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            servers.append(self)

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            up.set()

    monkeypatch.setattr(server.uvicorn, "Server", Watched)
    monkeypatch.setattr(commands, "_write_line", said.append)
    codes: list[int] = []
    arguments = ["dashboard", str(tmp_path / "runs"), "--port", "0"]
    thread = threading.Thread(target=lambda: codes.append(cli.main(arguments)))
    thread.start()
    assert up.wait(30)
    url = said[0].split(" ")[0]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
    assert httpx.get(f"{url}api/runs", trust_env=False).status_code == 401
    answer = httpx.get(f"{url}api/runs", auth=("me", TOKEN), trust_env=False)
    assert [run["id"] for run in answer.json()] == ["made"]
    taken = url.rstrip("/").rsplit(":", 1)[1]
    assert cli.main([*arguments[:-1], taken]) == 2
    assert f"cannot listen on 127.0.0.1, port {taken}" in capfd.readouterr().err
    servers[0].should_exit = True
    thread.join(30)
    assert codes == [0]


def test_the_command_refuses_an_open_door(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("SPEECHSUM_DASHBOARD_TOKEN", raising=False)
    assert cli.main(["dashboard", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "needs a token" in capsys.readouterr().err


def test_a_missing_chart_library_is_told(library: RunLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="plotly, which draws the dashboard's charts, is not installed"):
        build_app(library)
