"""A stretch of ordinary Python: dictionaries, strings, lists, JSON, classes. Prints a checksum."""
import json
import zlib


class Node:
    def __init__(self, key, left=None, right=None):
        self.key, self.left, self.right = key, left, right


def tree(depth, key=1):
    if depth == 0:
        return Node(key)
    return Node(key, tree(depth - 1, 2 * key), tree(depth - 1, 2 * key + 1))


def total(node):
    return 0 if node is None else node.key + total(node.left) + total(node.right)


state = 12345


def rand(bound):
    global state
    state = (state * 1103515245 + 12345) % (1 << 31)
    return state % bound


check = total(tree(15))
words = {}
for i in range(200_000):
    word = "w%d" % rand(30_000)
    words.setdefault(word, []).append(i)
check += sum(len(places) for places in words.values() if len(places) > 6)
text = " ".join(sorted(words)[:20_000])
check ^= zlib.crc32(text.encode())
for round in range(8):
    document = json.dumps([{"id": i, "tags": ["t%d" % rand(50) for _ in range(5)]} for i in range(4000)])
    check ^= zlib.crc32(document.encode())
    check += sum(len(record["tags"]) for record in json.loads(document))
rows = [bytes([rand(256)]) * rand(3000) for _ in range(20_000)]
rows.sort(key=len)
check ^= zlib.crc32(b"".join(rows[::7]))
print(check)
