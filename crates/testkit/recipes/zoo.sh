#!/bin/bash
# zoo.sh ROOT JAR: services of many kinds in a guest's root, each with something that shows from outside
# which version of its files it runs. Their own files are below /opt, /etc/zoo and the usual places.
set -euo pipefail
R=$1
put() { mkdir -p "$R${1%/*}"; cat > "$R$1"; if [ -n "${2:-}" ]; then chmod "$2" "$R$1"; fi; }
unit() { put "/etc/systemd/system/$1"; }
ENABLE="nginx apache2 ssh postgresql redis-server mariadb php8.2-fpm postfix cron rsyslog memcached supervisor named"
service() { # NAME COMMAND [LINE...]: a service that runs COMMAND
  local name=$1 command=$2; shift 2
  { printf '[Unit]\nDescription=%s of the zoo\n[Service]\nExecStart=%s\n' "$name" "$command"; printf '%s\n' "$@"
    printf '[Install]\nWantedBy=multi-user.target\n'; } | unit "$name.service"
  ENABLE="$ENABLE $name"
}

# Debian's own services.
put /etc/nginx/conf.d/zoo.conf <<'E'
server {
  listen 8443 ssl;
  ssl_certificate /etc/nginx/c.pem;
  ssl_certificate_key /etc/nginx/k.pem;
  root /var/www/html;
  location ~ \.php$ { include fastcgi_params; fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name; fastcgi_pass unix:/run/php/php8.2-fpm.sock; }
}
E
cert() { openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=$1" -keyout "$2" -out "$3" 2>/dev/null; }
cert base "$R/etc/nginx/k.pem" "$R/etc/nginx/c.pem"
# What updates bring that is not the same each time.
mkdir -p "$R/opt/next"; cert target "$R/opt/next/k.pem" "$R/opt/next/c.pem"
ssh-keygen -q -t ed25519 -N '' -C guest -f "$R/opt/next/ssh_host_ed25519_key"
put /etc/zoo/linked <<< 'add_header X-Linked 1 always;'
sed -i 's/^Listen 80$/Listen 8080/; s/^\tListen 443$/#&/' "$R/etc/apache2/ports.conf"
sed -i 's/<VirtualHost \*:80>/<VirtualHost *:8080>/' "$R/etc/apache2/sites-available/000-default.conf"
put /etc/apache2/conf-enabled/zoo.conf <<'E'
ServerName zoo
<Directory /var/www/html/a>
  AllowOverride All
</Directory>
E
mkdir -p "$R/var/www/html/a"
put /var/www/html/a/.htaccess <<< 'Redirect 307 /a/go http://zoo/base'
put /var/www/html/v.php <<< '<?php echo "php-base ", ini_get("memory_limit"), " ", ini_get("precision"), "\n";'
put /var/www/html/v.html <<< 'page-base'
put /etc/aliases <<< 'postmaster: root'
chroot "$R" newaliases
echo 'zone "zoo.test" { type master; file "/etc/bind/db.empty"; };' > "$R/etc/bind/named.conf.local"
# A disk of a test is small and its host shared.
printf 'shared_buffers = 16MB\nfsync = off\n' >> "$R/etc/postgresql/15/main/postgresql.conf"
printf '[mysqld]\ninnodb_buffer_pool_size=16M\nperformance_schema=off\nskip-networking=0\n' > "$R/etc/mysql/mariadb.conf.d/90-zoo.cnf"
sed -i 's/^pm.start_servers.*/pm.start_servers = 1/; s/^pm.min_spare.*/pm.min_spare_servers = 1/' "$R/etc/php/8.2/fpm/pool.d/www.conf"

# A supervisor with a child of its own.
put /etc/supervisor/conf.d/child.conf <<< $'[program:child]\ncommand=/bin/sh /opt/sup/child.sh'
put /opt/sup/child.sh <<< $'echo base > /run/child\nwhile :; do sleep 1; done'

# Python behind gunicorn: modules, configuration, a template that is read for each request.
put /opt/app/app.py <<'E'
import helper, yaml
CODE = "code-base"
CONFIG = yaml.safe_load(open("/etc/app/config.yaml"))
def app(environ, start_response):
    text = " ".join([CODE, helper.WORD, CONFIG["word"], open("/opt/app/template.txt").read().strip()]) + "\n"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
E
put /opt/app/helper.py <<< 'WORD = "helper-base"'
put /opt/app/template.txt <<< 'template-base'
put /etc/app/config.yaml <<< 'word: config-base'
service app '/usr/bin/gunicorn --bind 127.0.0.1:8000 --workers 1 app:app' Type=notify 'ExecReload=/bin/kill -HUP $MAINPID' WorkingDirectory=/opt/app Environment=PYTHONDONTWRITEBYTECODE=1

# Workers of several languages; each writes what it runs to /run and stays.
put /opt/py/worker.py <<'E'
import sys, time
sys.path.insert(0, "/opt/py/lib")
import wmod
open("/run/pyworker", "w").write("main-base " + wmod.WORD + "\n")
while True:
    time.sleep(60)
E
put /opt/py/lib/wmod.py <<< 'WORD = "module-base"'
service pyworker '/usr/bin/python3 /opt/py/worker.py'
put /opt/perl/pw.pl <<'E'
use lib '/opt/perl/lib';
use PMod;
open my $out, '>', '/run/perlworker'; print $out "main-base $PMod::word\n"; close $out;
sleep 60 while 1;
E
put /opt/perl/lib/PMod.pm <<< $'package PMod;\nour $word = "module-base";\n1;'
service perlworker '/usr/bin/perl /opt/perl/pw.pl'
put /opt/ruby/worker.rb <<'E'
require_relative "lib/rmod"
File.write("/run/rubyworker", "main-base #{RMod::WORD}\n")
sleep
E
put /opt/ruby/lib/rmod.rb <<< $'module RMod\n  WORD = "module-base"\nend'
service rubyworker '/usr/bin/ruby /opt/ruby/worker.rb'
put /opt/node/server.js <<'E'
const { word } = require('./lib/msg');
const settings = JSON.parse(require('fs').readFileSync('/etc/zoo/node.json'));
require('http').createServer((q, s) => s.end(`main-base ${word} ${settings.word}\n`)).listen(3000, '127.0.0.1');
E
put /opt/node/lib/msg.js <<< "exports.word = 'module-base';"
put /etc/zoo/node.json <<< '{"word": "settings-base"}'
service node '/usr/bin/node /opt/node/server.js'
put /opt/sh/loop.sh <<'E'
. /opt/sh/lib.sh
echo "main-base $word" > /run/shapp
while :; do sleep 1; done
E
put /opt/sh/lib.sh <<< 'word=module-base'
service shapp '/bin/sh /opt/sh/loop.sh'
mkdir -p "$R/opt/java"
# An application of our own, made by jar.py, which is $2.
for word in base target; do chroot "$R" python3 -c "$2" $word /opt/next/$word.jar; done
mv "$R/opt/next/base.jar" "$R/opt/java/app.jar"
service jarapp '/usr/bin/java -Xmx16m -jar /opt/java/app.jar' SuccessExitStatus=143
service javaapp '/usr/bin/rmiregistry 1099' SuccessExitStatus=143

# Templates, and an instance with its own configuration.
put /opt/foo/foo 755 <<< $'#!/bin/sh\nread word < "$1"; echo "$word $GREETING" > "/run/foo-$2"\nwhile :; do sleep 1; done'
put /etc/zoo/foo-a.conf <<< base
put /etc/zoo/foo-b.conf <<< base
unit foo@.service <<'E'
[Service]
Environment=GREETING=hello
ExecStart=/opt/foo/foo /etc/zoo/foo-%i.conf %i
[Install]
WantedBy=multi-user.target
E
ENABLE="$ENABLE foo@a foo@b"
# One that goes down and up with another.
service boss '/bin/sleep infinity'
unit helper.service <<'E'
[Unit]
BindsTo=boss.service
After=boss.service
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=boss.service
E
ENABLE="$ENABLE helper"

# Sockets: of a service that runs, of one that waits, of one process per connection.
put /opt/echo/echo.py <<'E'
import socket
listener = socket.socket(fileno=3)
while True:
    peer, _ = listener.accept()
    peer.sendall(b"echo-base\n")
    peer.close()
E
for name in echo:7007 idle:7008; do
  printf '[Socket]\nListenStream=127.0.0.1:%s\n[Install]\nWantedBy=sockets.target\n' "${name#*:}" | unit "${name%:*}.socket"
  ENABLE="$ENABLE ${name%:*}.socket"
done
printf '[Service]\nExecStart=/usr/bin/python3 /opt/echo/echo.py\n' | unit echo.service
sed 's/echo-base/idle-base/' "$R/opt/echo/echo.py" | put /opt/echo/idle.py
printf '[Service]\nExecStart=/usr/bin/python3 /opt/echo/idle.py\n' | unit idle.service
printf '[Socket]\nListenStream=127.0.0.1:7009\nAccept=yes\n[Install]\nWantedBy=sockets.target\n' | unit conn.socket
put /opt/echo/conn.sh 755 <<< $'#!/bin/sh\necho conn-base'
printf '[Service]\nExecStart=/opt/echo/conn.sh\nStandardOutput=socket\n' | unit conn@.service
ENABLE="$ENABLE conn.socket"

# A timer; what ran once; what is to stay down.
printf '[Service]\nType=oneshot\nExecStart=/bin/true\n' | unit hello.service
printf '[Timer]\nOnCalendar=2038-01-01\n[Install]\nWantedBy=timers.target\n' | unit hello.timer
ENABLE="$ENABLE hello.timer"
mkdir -p "$R/srv/zoo"   # a mount point
put /etc/zoo/once.conf <<< base
service once '/bin/cp /etc/zoo/once.conf /run/once' Type=oneshot RemainAfterExit=yes
put /etc/zoo/stopped.conf <<< base
service stopped '/bin/sh -c "cat /etc/zoo/stopped.conf; exec sleep infinity"'

# What only a start reads; a reload that does nothing; rights, links and libraries of programs.
put /etc/zoo/env <<< 'WORD=env-base'
put /etc/zoo/token <<< 'token-base'
service cred '/bin/sh -c "echo $$WORD $$(cat $$CREDENTIALS_DIRECTORY/token) > /run/cred; exec sleep infinity"' EnvironmentFile=/etc/zoo/env LoadCredential=token:/etc/zoo/token
put /opt/deaf/deaf.sh <<< $'trap : HUP\ncp /etc/zoo/deaf.conf /run/deaf\nwhile :; do sleep 1; done'
put /etc/zoo/deaf.conf <<< base
service deaf '/bin/sh /opt/deaf/deaf.sh /etc/zoo/deaf.conf' 'ExecReload=/bin/kill -HUP $MAINPID'
put /opt/polite/polite.sh <<< $'read_it() { cp /etc/zoo/polite.conf /run/polite; }\ntrap read_it HUP\nread_it\nwhile :; do sleep 60 & wait $!; done'
put /etc/zoo/polite.conf <<< base
service polite '/bin/sh /opt/polite/polite.sh /etc/zoo/polite.conf' 'ExecReload=/bin/kill -HUP $MAINPID'
cp "$R/bin/sleep" "$R/usr/local/bin/capsvc"; service capsvc '/usr/local/bin/capsvc infinity'
for n in 1 2; do cp "$R/bin/sleep" "$R/usr/local/bin/alt-$n"; done
ln -s /usr/local/bin/alt-1 "$R/etc/alternatives/altsvc"; ln -s /etc/alternatives/altsvc "$R/usr/bin/altsvc"
service altsvc '/usr/bin/altsvc infinity'
Z=$(cd "$R/usr/lib/x86_64-linux-gnu" && readlink -f libz.so.1)
for n in 3 4; do cp "$Z" "$R/usr/local/lib/libfoo.so.1.2.$n"; done
ln -s libfoo.so.1.2.3 "$R/usr/local/lib/libfoo.so.1"
service libuser '/bin/sleep infinity' Environment=LD_PRELOAD=/usr/local/lib/libfoo.so.1
service removed '/bin/sleep infinity'
service keyed '/bin/sleep infinity'
# One with a drop-in, and one that is not enabled.
service simple '/bin/sleep infinity'
unit simple.service.d/a.conf <<< $'[Service]\nEnvironment=ZOO=0'
printf '[Service]\nExecStart=/bin/cat /etc/zoo/spare.conf\n[Install]\nWantedBy=multi-user.target\n' | unit spare.service
put /etc/zoo/spare.conf <<< base
mkdir -p "$R/opt/zoolib"; cp "$Z" "$R/opt/zoolib/libzoo.so.1"

# A user who need not be logged in.
chroot "$R" useradd -m -u 1000 -s /bin/bash alice
mkdir -p "$R/var/lib/systemd/linger"; : > "$R/var/lib/systemd/linger/alice"
put /opt/user/loop.sh <<< $'echo base > "$XDG_RUNTIME_DIR/loop"\nwhile :; do sleep 1; done'
put /etc/systemd/user/usersvc.service <<< $'[Service]\nExecStart=/bin/sh /opt/user/loop.sh\n[Install]\nWantedBy=default.target'
mkdir -p "$R/etc/systemd/user/default.target.wants"
ln -s ../usersvc.service "$R/etc/systemd/user/default.target.wants/usersvc.service"

# shellcheck disable=SC2086
chroot "$R" env LC_ALL=C SYSTEMD_OFFLINE=1 systemctl -q enable $ENABLE
# What would act behind a test's back: timers of packages.
chroot "$R" env LC_ALL=C SYSTEMD_OFFLINE=1 systemctl -q mask phpsessionclean.timer 2>/dev/null || true
rm -rf "$R"/run/* "$R"/tmp/*
