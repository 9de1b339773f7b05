# jar.py WORD OUT.jar: an application for the JVM that writes WORD to /run/jarapp and stays. One class
# of one method, written as the JVM specification (chapter 4) lays it out: no compiler is needed.
import struct, sys, zipfile

word, out = sys.argv[1:]
pool = []
def add(tag, data):
    entry = bytes([tag]) + data
    if entry not in pool:
        pool.append(entry)
        if tag == 5:
            pool.append(None)  # A long takes two numbers.
    return pool.index(entry) + 1
u2 = lambda number: struct.pack(">H", number)
utf8 = lambda text: add(1, u2(len(text)) + text.encode())
cls = lambda name: add(7, u2(utf8(name)))
string = lambda text: add(8, u2(utf8(text)))
def method(owner, name, kind):
    return u2(add(10, u2(cls(owner)) + u2(add(12, u2(utf8(name)) + u2(utf8(kind))))))
FILE, STRING = "java/io/FileOutputStream", "java/lang/String"
code = (b"\xbb" + u2(cls(FILE)) + b"\x59"                                # new FileOutputStream, twice
    + b"\x13" + u2(string("/run/jarapp")) + b"\xb7" + method(FILE, "<init>", "(Ljava/lang/String;)V")
    + b"\x13" + u2(string(word + "\n")) + b"\xb6" + method(STRING, "getBytes", "()[B")
    + b"\xb6" + method(FILE, "write", "([B)V")
    + b"\x14" + u2(add(5, struct.pack(">q", 2**62))) + b"\xb8" + method("java/lang/Thread", "sleep", "(J)V")
    + b"\xb1")
body = u2(3) + u2(1) + struct.pack(">I", len(code)) + code + u2(0) + u2(0)
main = u2(9) + u2(utf8("main")) + u2(utf8("([Ljava/lang/String;)V")) + u2(1) + u2(utf8("Code")) + struct.pack(">I", len(body)) + body
this, parent = cls("App"), cls("java/lang/Object")
constants = b"".join(entry for entry in pool if entry)
app = (b"\xca\xfe\xba\xbe" + u2(0) + u2(50) + u2(len(pool) + 1) + constants + u2(0x21) + u2(this) + u2(parent)
    + u2(0) + u2(0) + u2(1) + main + u2(0))
with zipfile.ZipFile(out, "w") as jar:
    for name, data in [("META-INF/MANIFEST.MF", b"Manifest-Version: 1.0\nMain-Class: App\n"), ("App.class", app)]:
        jar.writestr(zipfile.ZipInfo(name), data)
