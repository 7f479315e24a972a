"""Client programs to copy: each asks the running server one question."""

from __future__ import annotations

import json
import shlex

LANGUAGES = (("curl", "curl"), ("python", "Python"), ("rust", "Rust"))


def snippet(language: str, url: str, key: str | None, model: str) -> str:
    """The program in a language of `LANGUAGES`, for a server at `url` (http://host:port) with this key."""
    return {"curl": _curl, "python": _python, "rust": _rust}[language](url, key, model)


def _curl(url: str, key: str | None, model: str) -> str:
    message = json.dumps({"role": "user", "content": "Hello, who are you?"})
    body = f'{{\n    "model": {json.dumps(model)},\n    "messages": [{message}]\n  }}'
    authorization = f"  -H 'Authorization: Bearer {key}' \\\n" if key else ""
    return (
        f"curl {url}/v1/chat/completions \\\n"
        + authorization
        + "  -H 'Content-Type: application/json' \\\n"
        + f"  -d {shlex.quote(body)}\n"
    )


def _python(url: str, key: str | None, model: str) -> str:
    return f"""from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="{key or "none"}")
stream = client.chat.completions.create(
    model={json.dumps(model)},
    messages=[{{"role": "user", "content": "Hello, who are you?"}}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
"""


def _rust(url: str, key: str | None, model: str) -> str:
    address = url.removeprefix("http://")
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello, who are you?"}]})
    authorization = f"Authorization: Bearer {key}\\r\\n" if key else ""
    return f"""use std::io::{{Read, Write}};
use std::net::TcpStream;

fn main() -> std::io::Result<()> {{
    let body = r###"{body}"###;
    let mut stream = TcpStream::connect("{address}")?;
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\\r\\nHost: {address}\\r\\n{authorization}\\
         Content-Type: application/json\\r\\nContent-Length: {{}}\\r\\nConnection: close\\r\\n\\r\\n{{}}",
        body.len(),
        body
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{{}}", answer);
    Ok(())
}}
"""
