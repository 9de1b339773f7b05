//! Configuration and certificates, right ones and broken ones.

use crate::zoo::case::{Case, Kind, case};

const NGINX: &str = "reload nginx.service";
const APACHE: &str = "reload apache2.service";
const SSH: &str = "reload ssh.service";
const FPM: &str = "reload php8.2-fpm.service";
const POSTGRES: &str = "reload postgresql@15-main.service";

const HEADER: &str = "curl -sI localhost | grep -ci x-zoo";
const PHP: &str = "curl -sk https://localhost:8443/v.php | cut -d' ' -f2-3";

pub(super) fn cases() -> Vec<Case> {
    [web(), login_and_mail(), databases(), own(), broken()].into_iter().flatten().collect()
}

fn row(id: &'static str) -> Case {
    case(Kind::Config, id)
}

fn web() -> Vec<Case> {
    vec![
        row("NGX-01")
            .write("/etc/nginx/conf.d/v.conf", "add_header X-Zoo 1 always;\n")
            .wants(&[NGINX])
            .shows(HEADER, "0", "1"),
        row("NGX-04")
            .copy("/opt/next/c.pem", "/etc/nginx/c.pem")
            .copy("/opt/next/k.pem", "/etc/nginx/k.pem")
            .wants(&[NGINX])
            .shows(
                "openssl s_client -connect localhost:8443 </dev/null 2>/dev/null | \
                    openssl x509 -noout -subject",
                "subject=CN = base",
                "subject=CN = target",
            ),
        row("DEL-01").remove("/etc/nginx/conf.d/release.conf").wants(&[NGINX]).shows(
            "curl -sI localhost | grep -ci x-release",
            "1",
            "0",
        ),
        row("nginx, a site linked")
            .link("/etc/nginx/conf.d/linked.conf", "/etc/zoo/linked")
            .wants(&[NGINX])
            .shows("curl -sI localhost | grep -ci x-linked", "0", "1"),
        row("APA-01")
            .write("/etc/apache2/conf-enabled/v.conf", "Redirect 307 /vv /x\n")
            .wants(&[APACHE])
            .shows("curl -so /dev/null -w '%{http_code}' localhost:8080/vv", "404", "307"),
        row("apache2, a module's link")
            .link("/etc/apache2/mods-enabled/headers.load", "../mods-available/headers.load")
            .wants(&[APACHE])
            .shows("apache2ctl -M 2>/dev/null | grep -c headers", "0", "1"),
        row("PHP-01")
            .append("/etc/php/8.2/fpm/pool.d/www.conf", "php_admin_value[precision] = 9\n")
            .wants(&[FPM])
            .shows(PHP, "128M 14", "128M 9"),
        row("PHP-03")
            .replace("/etc/php/8.2/fpm/php.ini", "memory_limit = 128M", "memory_limit = 200M")
            .wants(&[FPM])
            .shows(PHP, "128M 14", "200M 14"),
    ]
}

fn login_and_mail() -> Vec<Case> {
    vec![
        row("named, another zone")
            .append(
                "/etc/bind/named.conf.local",
                "zone \"more.test\" { type master; file \"/etc/bind/db.empty\"; };\n",
            )
            .wants(&["reload named.service"])
            .shows(
                "rndc zonestatus more.test 2>/dev/null | sed -n 's/^name: //p'",
                "",
                "more.test",
            ),
        row("SSH-01")
            .write("/etc/ssh/sshd_config.d/v.conf", "VersionAddendum zoo\n")
            .wants(&[SSH])
            .shows("head -1 </dev/tcp/127.0.0.1/22 | grep -c zoo", "0", "1"),
        row("PFX-01")
            .append("/etc/postfix/main.cf", "smtpd_banner = zoo ESMTP\n")
            .wants(&["reload postfix@-.service"])
            .shows("head -1 </dev/tcp/127.0.0.1/25 | grep -c '^220 zoo'", "0", "1"),
        row("LOG-03")
            .write("/etc/systemd/journald.conf.d/v.conf", "[Journal]\nRuntimeMaxUse=33M\n")
            .wants(&["restart systemd-journald.service"])
            .shows(
                "journalctl -b -u systemd-journald -o cat --grep 'max ' | tail -1 | grep -c 'max 33.0M'",
                "0",
                "1",
            ),
        row("rsyslog, a new rule")
            .write("/etc/rsyslog.d/v.conf", "local5.* /var/log/zoo.log\n")
            .wants(&["restart rsyslog.service"])
            .shows(
                "rm -f /var/log/zoo.log; logger -p local5.info zoo; sleep 0.5; \
                    grep -c zoo /var/log/zoo.log 2>/dev/null || true",
                "",
                "1",
            ),
        row("supervisor, a new program")
            .write(
                "/etc/supervisor/conf.d/other.conf",
                "[program:other]\ncommand=/bin/sleep infinity\n",
            )
            .wants(&["reload supervisor.service"])
            .shows("supervisorctl status | grep -c '^other *RUNNING'", "0", "1"),
    ]
}

fn databases() -> Vec<Case> {
    let psql = |what| match what {
        "work_mem" => "runuser -u postgres -- psql -XtAc 'show work_mem'",
        _ => "PGPASSWORD=x psql -h 127.0.0.1 -U zoo postgres -c '' 2>&1 | grep -q rejects; echo $?",
    };
    vec![
        row("PG-01")
            .append("/etc/postgresql/15/main/postgresql.conf", "work_mem = 7MB\n")
            .wants(&[POSTGRES])
            .shows(psql("work_mem"), "4MB", "7MB"),
        row("PG-04")
            .replace(
                "/etc/postgresql/15/main/pg_hba.conf",
                "# IPv4 local connections:\n",
                "host all zoo 127.0.0.1/32 reject\n",
            )
            .wants(&[POSTGRES])
            .shows(psql("login"), "1", "0"),
        row("postgresql, what only a start reads")
            .append("/etc/postgresql/15/main/postgresql.conf", "max_connections = 55\n")
            .wants(&["restart postgresql@15-main.service"])
            .shows("runuser -u postgres -- psql -XtAc 'show max_connections'", "100", "55"),
        row("RED-01")
            .append("/etc/redis/redis.conf", "maxmemory 100mb\n")
            .wants(&["restart redis-server.service"])
            .shows("redis-cli config get maxmemory | tail -1", "0", "104857600"),
        row("MDB-01")
            .write("/etc/mysql/mariadb.conf.d/zz.cnf", "[mysqld]\nmax_connections=77\n")
            .wants(&["restart mariadb.service"])
            .shows("mariadb -Ne 'select @@max_connections'", "151", "77"),
        row("MEM-01")
            .replace("/etc/memcached.conf", "-m 64", "-m 65")
            .wants(&["restart memcached.service"])
            .shows(
                "tr '\\0' ' ' < /proc/$(systemctl show -p MainPID --value memcached)/cmdline | \
                    grep -o -- '-m [0-9]*'",
                "-m 64",
                "-m 65",
            ),
    ]
}

/// Of services that no distribution brings.
fn own() -> Vec<Case> {
    vec![
        row("PY-03")
            .write("/etc/app/config.yaml", "word: config-target\n")
            .wants(&["reload app.service"])
            .shows("curl -s localhost:8000 | cut -d' ' -f3", "config-base", "config-target"),
        row("node, settings")
            .write("/etc/zoo/node.json", "{\"word\": \"settings-target\"}\n")
            .wants(&["restart node.service"])
            .shows("curl -s localhost:3000 | cut -d' ' -f3", "settings-base", "settings-target"),
        row("an instance's argument")
            .write("/etc/zoo/foo-a.conf", "target\n")
            .wants(&["restart foo@a.service"])
            .shows(
                "cat /run/foo-a /run/foo-b",
                "base hello\nbase hello",
                "target hello\nbase hello",
            ),
        row("an environment file")
            .write("/etc/zoo/env", "WORD=env-target\n")
            .wants(&["restart cred.service"])
            .shows("cut -d' ' -f1 /run/cred", "env-base", "env-target"),
        row("a credential")
            .write("/etc/zoo/token", "token-target\n")
            .wants(&["restart cred.service"])
            .shows("cut -d' ' -f2 /run/cred", "token-base", "token-target"),
        row("a reload that takes it up")
            .write("/etc/zoo/polite.conf", "target\n")
            .wants(&["reload polite.service"])
            .shows("cat /run/polite", "base", "target"),
        row("a reload that does nothing")
            .write("/etc/zoo/deaf.conf", "target\n")
            .wants(&["restart deaf.service"])
            .shows("cat /run/deaf", "base", "target"),
    ]
}

/// What would keep its service from starting again: nothing of it is to be on the disk.
fn broken() -> Vec<Case> {
    let row = |id| case(Kind::Broken, id);
    let absent = |case: Case, script| case.shows(script, "absent", "absent");
    vec![
        absent(
            row("NGX-02").write("/etc/nginx/conf.d/bad.conf", "no_such_word 1;\n").is_refused(&[
                "nginx -t",
                "unknown directive",
                "no_such_word",
            ]),
            "ls /etc/nginx/conf.d/bad.conf 2>/dev/null || echo absent",
        ),
        absent(
            row("APA-02")
                .write("/etc/apache2/conf-enabled/v.conf", "NoSuchWord 1\n")
                .is_refused(&["apachectl configtest", "Invalid command 'NoSuchWord'"]),
            "ls /etc/apache2/conf-enabled/v.conf 2>/dev/null || echo absent",
        ),
        absent(
            row("SSH-02")
                .write("/etc/ssh/sshd_config.d/v.conf", "NoSuchWord 1\n")
                .is_refused(&["sshd -t", "NoSuchWord"]),
            "ls /etc/ssh/sshd_config.d/v.conf 2>/dev/null || echo absent",
        ),
        absent(
            row("php-fpm, a broken pool")
                .write("/etc/php/8.2/fpm/pool.d/bad.conf", "[bad]\nno_such_word = 1\n")
                .is_refused(&["php-fpm8.2 -t", "no_such_word"]),
            "ls /etc/php/8.2/fpm/pool.d/bad.conf 2>/dev/null || echo absent",
        ),
        absent(
            row("sudo, a broken rule")
                .write("/etc/sudoers.d/bad", "alice ALL=(\n")
                .is_refused(&["visudo -c", "syntax error"]),
            "ls /etc/sudoers.d/bad 2>/dev/null || echo absent",
        ),
        absent(
            row("rsyslog, a broken rule")
                .write("/etc/rsyslog.d/bad.conf", "module(load=\"no-such\")\n*.* ((\n")
                .is_refused(&["rsyslogd -N1", "bad.conf"]),
            "ls /etc/rsyslog.d/bad.conf 2>/dev/null || echo absent",
        ),
        absent(
            row("a unit that starts nothing")
                .write("/etc/systemd/system/bad.service", "[Service]\nType=simple\n")
                .is_refused(&["systemd-analyze verify", "bad.service", "no ExecStart="]),
            "ls /etc/systemd/system/bad.service 2>/dev/null || echo absent",
        ),
        // It tells its mail log alone.
        row("postfix, a size that is none")
            .append("/etc/postfix/main.cf", "message_size_limit = abc\n")
            .is_refused(&["postfix check"])
            .shows("grep -c abc /etc/postfix/main.cf", "0", "0"),
        row("named, a zone without a file")
            .append(
                "/etc/bind/named.conf.local",
                "zone \"bad.test\" { type master; file \"/etc/bind/none\"; };\n",
            )
            .is_refused(&["named-checkconf -z", "bad.test", "file not found"])
            .shows("grep -c bad.test /etc/bind/named.conf.local", "0", "0"),
        row("PG-03")
            .append("/etc/postgresql/15/main/postgresql.conf", "work_mem = banana\n")
            .is_refused(&["postgres -C", "banana"])
            .shows("grep -c banana /etc/postgresql/15/main/postgresql.conf", "0", "0"),
    ]
}
