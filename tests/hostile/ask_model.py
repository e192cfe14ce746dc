"""Ask the model's API for what is no message."""

import json
import os
import urllib.error
import urllib.request

base = os.environ["ANTHROPIC_BASE_URL"]
TARGETS = (
    ("GET", "/v1/models"),
    ("GET", "/v1/organizations"),
    ("POST", "/v1/files"),
    ("DELETE", "/v1/messages"),
    ("POST", "/v1/messages/batches"),
    ("POST", "/v1/../admin"),
    ("POST", "//evil.example/v1/messages"),
    ("POST", "/v1/messages%2f..%2ffiles"),
    ("POST", "/v1/messages/../files"),
)
answers = []
for method, path in TARGETS:
    request = urllib.request.Request(base + path, data=b"{}" if method == "POST" else None, method=method)
    try:
        answers.append(urllib.request.urlopen(request, timeout=60).status)
    except urllib.error.HTTPError as error:
        answers.append(error.code)
print(json.dumps([answers, os.environ.get("ANTHROPIC_API_KEY")]))
