"""Where the compiled `peer` benchmark is."""
import json, os, subprocess


def peer_binary(*options):
    """That of the environment variable PEER, or what cargo builds with these options."""
    if "PEER" in os.environ:
        return os.environ["PEER"]
    build = ["cargo", "bench", *options, "--bench", "peer", "--no-run", "--message-format=json"]
    out = subprocess.run(build, check=True, capture_output=True, text=True).stdout
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [m["executable"] for m in found if m.get("executable") and m["target"]["name"] == "peer"][-1]
