//! Scripts and modules that interpreters read and close.

use crate::zoo::case::{Case, Kind, case};

pub(super) fn cases() -> Vec<Case> {
    [python(), others()].into_iter().flatten().collect()
}

fn row(id: &'static str) -> Case {
    case(Kind::Script, id)
}

/// The word that the program behind gunicorn answers at `field`.
macro_rules! app {
    ($field:literal) => {
        concat!("curl -s localhost:8000 | cut -d' ' -f", $field)
    };
}

fn python() -> Vec<Case> {
    vec![
        row("PY-01")
            .replace("/opt/app/app.py", "code-base", "code-target")
            .wants(&["reload app.service"])
            .shows(app!(1), "code-base", "code-target"),
        row("PY-02")
            .replace("/opt/app/helper.py", "helper-base", "helper-target")
            .wants(&["reload app.service"])
            .shows(app!(2), "helper-base", "helper-target"),
        row("PY-06")
            .replace("/opt/py/lib/wmod.py", "module-base", "module-target")
            .wants(&["restart pyworker.service"])
            .shows("cat /run/pyworker", "main-base module-base", "main-base module-target"),
        row("python, the script itself")
            .replace("/opt/py/worker.py", "main-base", "main-target")
            .wants(&["restart pyworker.service"])
            .shows("cat /run/pyworker", "main-base module-base", "main-target module-base"),
        row("a socket's running service")
            .prepare("head -1 </dev/tcp/127.0.0.1/7007")
            .replace("/opt/echo/echo.py", "echo-base", "echo-target")
            .wants(&["restart echo.service"])
            .shows("head -1 </dev/tcp/127.0.0.1/7007", "echo-base", "echo-target"),
    ]
}

fn others() -> Vec<Case> {
    vec![
        row("PL-01")
            .replace("/opt/perl/pw.pl", "main-base", "main-target")
            .replace("/opt/perl/lib/PMod.pm", "module-base", "module-target")
            .wants(&["restart perlworker.service"])
            .shows("cat /run/perlworker", "main-base module-base", "main-target module-target"),
        row("perl, the module alone")
            .replace("/opt/perl/lib/PMod.pm", "module-base", "module-target")
            .wants(&["restart perlworker.service"])
            .shows("cat /run/perlworker", "main-base module-base", "main-base module-target"),
        row("SH-01")
            .replace("/opt/sh/loop.sh", "main-base", "main-target")
            .wants(&["restart shapp.service"])
            .shows("cat /run/shapp", "main-base module-base", "main-target module-base"),
        row("shell, what the script reads")
            .replace("/opt/sh/lib.sh", "module-base", "module-target")
            .wants(&["restart shapp.service"])
            .shows("cat /run/shapp", "main-base module-base", "main-base module-target"),
        row("ruby, a module")
            .replace("/opt/ruby/lib/rmod.rb", "module-base", "module-target")
            .wants(&["restart rubyworker.service"])
            .shows("cat /run/rubyworker", "main-base module-base", "main-base module-target"),
        row("ruby, the script itself")
            .replace("/opt/ruby/worker.rb", "main-base", "main-target")
            .wants(&["restart rubyworker.service"])
            .shows("cat /run/rubyworker", "main-base module-base", "main-target module-base"),
        row("node, the script itself")
            .replace("/opt/node/server.js", "main-base", "main-target")
            .wants(&["restart node.service"])
            .shows("curl -s localhost:3000 | cut -d' ' -f1", "main-base", "main-target"),
        row("node, a module")
            .replace("/opt/node/lib/msg.js", "module-base", "module-target")
            .wants(&["restart node.service"])
            .shows("curl -s localhost:3000 | cut -d' ' -f2", "module-base", "module-target"),
        row("a template's program")
            .replace("/opt/foo/foo", "$word $GREETING", "$word $GREETING!")
            .wants(&["restart foo@a.service", "restart foo@b.service"])
            .shows(
                "cat /run/foo-a /run/foo-b",
                "base hello\nbase hello",
                "base hello!\nbase hello!",
            ),
        row("a supervisor's child")
            .replace("/opt/sup/child.sh", "echo base", "echo target")
            .wants(&["restart supervisor.service"])
            .shows("cat /run/child", "base", "target"),
        // Held, and said to wait, it runs on as it was until its user restarts it.
        row("a user's service")
            .replace("/opt/user/loop.sh", "echo base", "echo target")
            .wants(&["hold user@1000.service"])
            .prepare(
                "runuser -u alice -- env XDG_RUNTIME_DIR=/run/user/1000 systemctl --user \
                 show -p MainPID --value usersvc > /run/user.pid",
            )
            .then_shows(
                "ask() { runuser -u alice -- env XDG_RUNTIME_DIR=/run/user/1000 systemctl --user \"$@\"; }
                 waits() { vireo-agent status --json | grep -c '\"subject\":\"user@1000.service\"'; }
                 pid=$(ask show -p MainPID --value usersvc); [ $pid = $(cat /run/user.pid) ] && echo same
                 cat /run/user/1000/loop; waits
                 ask restart usersvc; for n in 1 2 3 4 5; do grep -q target /run/user/1000/loop || sleep 0.2; done
                 [ $pid != $(ask show -p MainPID --value usersvc) ] && echo another
                 cat /run/user/1000/loop; waits",
                "same\nbase\n1\nanother\ntarget\n0",
            )
            .clean(
                "runuser -u alice -- env XDG_RUNTIME_DIR=/run/user/1000 systemctl --user restart usersvc",
            ),
        row("java, an application's own archive")
            .copy("/opt/next/target.jar", "/opt/java/app.jar")
            .wants(&["restart jarapp.service"])
            .shows("cat /run/jarapp", "base", "target"),
    ]
}
