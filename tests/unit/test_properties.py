"""config.properties: what is written, what is read back, what is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlergen.errors import HandlergenError
from handlergen.server.java import find_java
from handlergen.server.properties import (
    ServerSettings,
    explain,
    parse_properties,
    render_properties,
    server_settings,
    unknown_keys,
)
from handlergen.server.property_text import format_entry, parse_entries

REPOSITORY = Path(__file__).resolve().parents[2]


def test_defaults_round_trip():
    assert parse_properties(render_properties(ServerSettings())) == ServerSettings()


def test_every_setting_round_trips():
    changed = server_settings(
        host="0.0.0.0",
        inference_port=1,
        management_port=2,
        metrics_port=3,
        grpc_inference_port=4,
        grpc_management_port=5,
        certificate_file="tls/cert.pem",
        private_key_file="tls/key.pem",
        ca_file="tls/ca.pem",
        tls_name="models.example.com",
        token_authorization=False,
        model_store="models of märz",
        load_models="a.mar,b.mar",
        install_requirements=True,
        token_expiration_min=1_234_567.25,
        model_api=True,
        allowed_urls=r"https://models\.example\.com/.*,file:///m\\odels/.*",
        job_queue_size=7,
        max_request_size=8,
        max_response_size=9,
        metrics_mode="log",
        metrics_config="Messwerte für alle.yaml",
        system_metrics_cmd="x y",
        log_config="templates/log4j2.xml",
        vm_args="-Xmx2g -XX:+UseSerialGC",
        other=(("number_of_gpu", "1"), ("keystore_pass", " =:#!\\ñ😀")),
    )
    assert parse_properties(render_properties(changed)) == changed


def test_no_line_ends_in_a_blank_and_comments_stand_alone():
    for line in render_properties(ServerSettings()).splitlines():
        assert line == line.rstrip()
        assert line.startswith("#") or "#" not in line


def test_every_line_is_explained():
    written = {entry.key for entry in parse_entries(render_properties(ServerSettings()))}
    assert written == {line.key for line in explain(ServerSettings()) if line.value}
    assert all(line.why for line in explain(ServerSettings()))


def test_a_missing_key_means_torchserves_default_not_ours():
    bare = parse_properties("")
    assert bare.allowed_urls == "file://.*|http(s)?://.*"
    assert bare.metrics_mode == "log"
    assert bare.token_authorization
    assert bare.inference_address == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("job_queue_size=1 ", "config.properties:1: job_queue_size"),
        ("\n# c\nenable_model_api=yes", "config.properties:3: enable_model_api: 'yes' is neither true nor false"),
        ("grpc_inference_port=many", "'many' is not a number"),
        ("inference_address=127.0.0.1:8080", "is not of the form http://host:port"),
        (r"metrics_config=\u12", "malformed"),
        ("job_queue_size=a\nmax_request_size=b", "config.properties:2"),
    ],
)
def test_refused_with_the_line(text: str, said: str):
    with pytest.raises(HandlergenError) as caught:
        parse_properties(text)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"inference_port": 8081}, "share port 8081"),
        ({"inference_port": 0}, "0 is not a valid port"),
        ({"inference_port": -5}, "-5"),
        ({"inference_port": 99999}, "99999"),
        ({"log_config": "my logs/log4j2.xml"}, "must not contain whitespace"),
        ({"model_store": "C:\\models"}, "must not contain a backslash"),
        ({"model_store": "store "}, "leading or trailing whitespace"),
        ({"metrics_config": "a\nb=c"}, "line break"),
        ({"host": "::1"}, "IPv6"),
        ({"host": "foo bar"}, "neither a host name nor an IPv4"),
        ({"host": "300.1.1.1"}, "neither a host name nor an IPv4"),
        ({"host": "http://1.2.3.4"}, "is a URL"),
        ({"host": ""}, "neither a host name nor an IPv4"),
        ({"certificate_file": "cert.pem"}, "a certificate needs its key"),
        ({"token_expiration_min": 0.0}, "token_expiration_min must be between"),
        ({"token_expiration_min": float("nan")}, "token_expiration_min must be between"),
        ({"max_response_size": 2**31}, "max_response_size must be between"),
    ],
)
def test_settings_that_would_not_work_are_refused(changed: dict[str, object], said: str):
    with pytest.raises(HandlergenError) as caught:
        server_settings(**changed)  # type: ignore[arg-type]
    assert said in caught.value.message


def test_unknown_keys_name_the_nearest():
    settings = parse_properties("job_queue_sise=5\nnumber_of_gpu=1\n")
    assert list(unknown_keys(settings)) == [
        "TorchServe ignores the unknown key 'job_queue_sise'; did you mean 'job_queue_size'?"
    ]


def test_continued_lines_and_other_separators_are_read_as_java_does():
    text = "a : 1\n  b 2\n! no\nc=x\\\n   y\nd\\ e=f\ng=\nh\n"
    assert [(entry.key, entry.value, entry.line) for entry in parse_entries(text)] == [
        ("a", "1", 1),
        ("b", "2", 2),
        ("c", "xy", 4),
        ("d e", "f", 6),
        ("g", "", 7),
        ("h", "", 8),
    ]


_values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=30)


@given(_values)
def test_any_value_comes_back(value: str):
    assert [(e.key, e.value) for e in parse_entries(format_entry("metrics_config", value))] == [
        ("metrics_config", value)
    ]


JAVA_READER = """
import java.io.FileInputStream;
import java.nio.charset.StandardCharsets;
import java.util.Properties;

public class Reader {
    public static void main(String[] args) throws Exception {
        Properties properties = new Properties();
        properties.load(new FileInputStream(args[0]));
        for (String key : new java.util.TreeSet<>(properties.stringPropertyNames())) {
            byte[] line = (key + "=" + properties.getProperty(key) + "\\0").getBytes(StandardCharsets.UTF_8);
            System.out.write(line, 0, line.length);
        }
        System.out.flush();
    }
}
"""


@pytest.mark.skipif(shutil.which("javac") is None, reason="needs a Java compiler")
def test_java_itself_reads_what_we_write(tmp_path: Path):
    java = find_java()
    source = tmp_path / "Reader.java"
    source.write_text(JAVA_READER, "utf-8")
    values = {"k1": " leading", "k2": "a=b:c#d!e", "k3": "ä😀", "k4": "\\d+\\.x", "k5": "tab\tform\f", "k6": "end "}
    text = "\n".join(format_entry(key, value) for key, value in values.items()) + "\n"
    (tmp_path / "x.properties").write_text(text, "utf-8")
    done = subprocess.run(
        [java.home / "bin" / "java", str(source), str(tmp_path / "x.properties")], capture_output=True, check=True
    )
    read = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
    assert read == values


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str):
    try:
        parsed = parse_properties(text)
    except HandlergenError:
        return
    assert isinstance(parsed, ServerSettings)


def test_the_repositorys_own_file_is_what_handlergen_writes():
    own = ServerSettings(log_config="templates/log4j2.xml", metrics_config="templates/metrics.yaml")
    assert (REPOSITORY / "config.properties").read_text("utf-8") == render_properties(own)
    for named in (own.log_config, own.metrics_config, own.model_store):
        assert (REPOSITORY / named).exists()
