"""LeNet and ResNet-18 in dalcore and in PyTorch on this machine, interleaved, medians and ratios. Selection: see selection.py.

    pip install torch      (into a virtual environment)
    python benches/peer.py [--rounds 5] [--threads 2] [--only lenet,w16,w64,mixmatch] [--cuda]

Needs cargo, or the environment variable PEER with the path of the compiled `peer` benchmark."""
import argparse, os, statistics, subprocess, time

from bench_binary import peer_binary

p = argparse.ArgumentParser()
p.add_argument("--rounds", type=int, default=5)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--only", default="lenet,w16,w64,mixmatch", help="comma-separated (default: all)")
p.add_argument("--cuda", action="store_true")
args = p.parse_args()
device = "cuda" if args.cuda else "cpu"


def ours(*case, batch=256, precision="f32"):
    env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads), DALCORE_BENCH_DEVICE=device, DALCORE_BENCH_BATCH=str(batch),
               DALCORE_BENCH_PRECISION=precision)
    out = subprocess.run([binary, *map(str, case)], check=True, capture_output=True, text=True, env=env).stdout
    return float(out.split()[-1])


def report(name, ours_s, theirs_s, peer):
    a, b = statistics.median(ours_s), statistics.median(theirs_s)
    spread = lambda v: f"{min(v) * 1e3:.2f}..{max(v) * 1e3:.2f}"
    print(f"{name:<34} dalcore {a * 1e3:9.2f} ms ({spread(ours_s)})   {peer} {b * 1e3:9.2f} ms ({spread(theirs_s)})   ratio {b / a:6.1f}x", flush=True)


def step(net, opt, x, y, forward=None):
    """One training step as the engine does it: element-wise gradient clamp included."""
    forward = forward or net

    def run():
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(x), y)
        loss.backward()
        for w in net.parameters():
            w.grad.clamp_(-0.1, 0.1)
        opt.step()

    return run


def mixmatch(net, parts, y, classes=10):
    """One step of MixMatch as the engine does it (METHODS 4.2), on images that are augmented already: two guesses, mixtures,
    three interleaved batches, SGD, moving average of weights and statistics, decoupled decay of filters and weights."""
    (x, u, v), batch = parts, len(y)
    sizes = [batch // 3 + (i >= 3 - batch % 3) for i in range(3)]
    opt = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    kernels = [w for w in net.parameters() if w.dim() > 1]
    state = [t for t in [*net.parameters(), *net.buffers()] if t.is_floating_point()]
    average = [t.detach().clone() for t in state]
    beta = torch.distributions.Beta(0.75, 0.75)
    one_hot = torch.nn.functional.one_hot(y, classes).float()

    def interleave(parts):
        slots = [list(p.split(sizes)) for p in parts]
        for i in (1, 2):
            slots[0][i], slots[i][i] = slots[i][i], slots[0][i]
        return [torch.cat(s) for s in slots]

    def run():
        with torch.no_grad():
            p = (net(u).softmax(1) + net(v).softmax(1)) / 2
            q = p**2
            q = q / q.sum(1, keepdim=True)
            images, targets = torch.cat([x, u, v]), torch.cat([one_hot, q, q])
            share = beta.sample().to(device)
            share = torch.maximum(share, 1 - share)
            partner = torch.randperm(3 * batch, device=device)
            mixed = share * images + (1 - share) * images[partner]
            targets = share * targets + (1 - share) * targets[partner]
            batches = interleave(list(mixed.split(batch)))
        logits = torch.cat(interleave([net(b) for b in batches]))
        known = -(targets[:batch] * logits[:batch].log_softmax(1)).sum(1).mean()
        loss = known + 10.0 * ((logits[batch:].softmax(1) - targets[batch:]) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, state, 0.001)
            torch._foreach_mul_(kernels, 1 - 0.02 * 0.01)

    return run


def timed(f, n):
    f()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        f()
        if args.cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def network(width):
    """ResNet-18 for 32x32 images, channels_last."""
    nn = torch.nn
    torch.manual_seed(0)

    def conv(c, k, r, stride):
        return nn.Sequential(nn.Conv2d(c, k, r, stride, r // 2, bias=False), nn.BatchNorm2d(k))

    class Block(nn.Module):
        def __init__(self, c, k, stride):
            super().__init__()
            self.one, self.two = conv(c, k, 3, stride), conv(k, k, 3, 1)
            self.down = conv(c, k, 1, stride) if stride > 1 or c != k else nn.Identity()

        def forward(self, x):
            return torch.relu(self.two(torch.relu(self.one(x))) + self.down(x))

    blocks = [Block(width << max(0, s - (i == 0)), width << s, 2 if s and i == 0 else 1) for s in range(4) for i in range(2)]
    blocks[0] = Block(width, width, 1)
    head = [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * width, 10)]
    net = nn.Sequential(conv(3, width, 3, 1), nn.ReLU(), *blocks, *head)
    assert sum(p.numel() for p in net.parameters()) == {16: 701_466, 64: 11_173_962}[width]
    return net.to(device, memory_format=torch.channels_last)


def batch_of(n):
    x = torch.randn(n, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    return x, torch.randint(10, (n,), device=device)


def resnet(width, batch, case):
    """One training step; `case` of the engine's side also crops and flips."""
    net, (x, y) = network(width), batch_of(batch)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    a, b = [], []
    for _ in range(args.rounds):
        a.append(ours(*case, batch=batch))
        b.append(timed(step(net, opt, x, y), 4))
    report(f"resnet-train (w{width}, batch {batch})", a, b, "PyTorch")


def resnet_on_gpu(width, batch=256):
    """The engine's step in bf16, replayed as a graph, beside PyTorch eager in f32 and compiled in bf16 with CUDA graphs."""
    x, y = batch_of(batch)
    for peer, compiled in [("PyTorch eager f32", False), ("PyTorch compiled bf16", True)]:
        net = network(width)
        opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
        model = torch.compile(net, mode="max-autotune") if compiled else net

        def forward(x):
            with torch.autocast("cuda", torch.bfloat16, enabled=compiled):
                return model(x).float()

        run = step(net, opt, x, y, forward)
        for _ in range(5):  # compiles, records graphs
            run()
        a, b = [], []
        for _ in range(args.rounds):
            a.append(ours("step", f"resnet18-w{width}", batch=batch, precision="bf16"))
            b.append(timed(run, 40))
        report(f"resnet-train bf16 (w{width}, batch {batch})", a, b, peer)


def lenet_network():
    nn = torch.nn

    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
            self.drop, self.fc1, self.fc2 = nn.Dropout2d(0.5), nn.Linear(320, 50), nn.Linear(50, 10)

        def forward(self, x):
            x = torch.relu(torch.max_pool2d(self.conv1(x), 2))
            x = torch.relu(torch.max_pool2d(self.drop(self.conv2(x)), 2))
            x = torch.relu(self.fc1(x.flatten(1)))
            return self.fc2(torch.dropout(x, 0.5, self.training))

    torch.manual_seed(0)
    return LeNet().to(device)


def semi_supervised():
    """LeNet with three times 128 images, ResNet-18 w16 with three times 256; the engine also crops (and flips)."""
    y = torch.randint(10, (256,), device=device)
    cases = [("lenet-mixmatch", lenet_network(), [torch.randn(128, 1, 28, 28, device=device) for _ in range(3)], 20)]
    cases.append(("resnet-mixmatch", network(16), [batch_of(256)[0] for _ in range(3)], 2))
    for name, net, parts, n in cases:
        net.train()
        run = mixmatch(net, parts, y[: len(parts[0])])
        a, b = [], []
        for _ in range(args.rounds):
            a.append(ours(name))
            b.append(timed(run, n))
        report(f"{name} (batch 3 x {len(parts[0])})", a, b, "PyTorch")


def lenet():
    net = lenet_network()
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    x, y = torch.randn(128, 1, 28, 28, device=device), torch.randint(10, (128,), device=device)
    e = torch.randn(1024, 1, 28, 28, device=device)

    def evaluate():
        with torch.no_grad():
            return net(e).argmax(1).sum()

    for name, f, mode, n in [("lenet-train", step(net, opt, x, y), True, 60), ("lenet-eval", evaluate, False, 30)]:
        net.train(mode)
        a, b = [], []
        for _ in range(args.rounds):
            a.append(ours(name))
            b.append(timed(f, n))
        report(name + (" (batch 128)" if mode else " (batch 1024)"), a, b, "PyTorch")


import torch  # noqa: E402  (after the arguments: --help needs no PyTorch)

torch.set_num_threads(args.threads)
binary = peer_binary()
wanted = args.only.split(",")
if "lenet" in wanted:
    lenet()
if "mixmatch" in wanted:
    semi_supervised()
if "w16" in wanted:
    resnet(16, 256, ["resnet-train"])
    if args.cuda:
        resnet_on_gpu(16)
if "w64" in wanted:
    resnet(64, 64, ["step", "resnet18-w64"])
    if args.cuda:
        resnet_on_gpu(64)
