//! The rule pack: what is known about Linux systems in general, as data.
//!
//! Tables are searched from the top, the first match counts. Patterns are globs in which `*`
//! stays within a path component and `**` crosses them; paths are those of a merged `/usr`.
//! A [`Policy`](crate::Policy) starts from these tables and can add to them.

use serde::{Deserialize, Serialize};

use crate::policy::Effect;
use crate::{Class, Class::*};

/// Places with one meaning, whatever their content.
pub const SURE_CLASSES: &[(&str, Class)] = &[
    ("/usr/bin/vireo-agent", Agent),
    ("/usr/lib/systemd/system/vireo-agent.service", Unit),
    // Boot.
    ("/boot/vmlinuz*", Kernel),
    ("/boot/vmlinux*", Kernel),
    ("/boot/Image*", Kernel),
    ("/vmlinuz*", Kernel),
    ("/boot/initrd*", Initramfs),
    ("/boot/initramfs*", Initramfs),
    ("/initrd.img*", Initramfs),
    ("/boot/{config,System.map}-*", Documentation),
    ("/boot/**", BootLoader),
    ("/usr/lib/grub/**", BootLoader),
    ("/etc/default/grub{,.d/**}", BootLoader),
    ("/etc/grub.d/**", BootLoader),
    ("/usr/lib/modules/*/vmlinuz", Kernel),
    ("/usr/lib/modules/*/initrd", Initramfs),
    ("/usr/lib/modules/**", KernelModule),
    ("/usr/lib/firmware/**", Firmware),
    ("/etc/initramfs-tools/**", BootLoader),
    ("/usr/share/initramfs-tools/**", BootLoader),
    // The service manager.
    ("/{etc,usr/lib,usr/local/lib}/systemd/{system,user}/*.d/*", UnitDropIn),
    ("/{etc,usr/lib,usr/local/lib}/systemd/{system,user}/**", Unit),
    ("/etc/systemd/{system,user}.conf{,.d/**}", ManagerConfig),
    ("/usr/lib/systemd/{system,user}.conf{,.d/**}", ManagerConfig),
    ("/{etc,usr/lib}/systemd/{system,user}-{preset,generators}/**", ManagerConfig),
    ("/etc/fstab", ManagerConfig),
    ("/etc/crypttab", ManagerConfig),
    ("/{etc,usr/lib}/{tmpfiles,sysusers,sysctl,binfmt,modules-load,modprobe}.d/**", ManagerInput),
    ("/etc/sysctl.conf", ManagerInput),
    ("/etc/modules", ManagerInput),
    ("/etc/ld.so.conf{,.d/**}", ManagerInput),
    ("/{etc,usr/lib}/udev/{rules.d,hwdb.d}/**", ManagerInput),
    ("/{etc,usr/lib}/udev/hwdb.bin", Cache),
    // Trust and names.
    ("/etc/ssl/{certs,private}{,/**}", Certificate),
    ("/etc/pki/**", Certificate),
    ("/usr/share/ca-certificates/**", Certificate),
    ("/etc/ca-certificates{,.conf,/**}", Certificate),
    ("/etc/letsencrypt/{live,archive}/**", Certificate),
    ("/etc/ssh/ssh_host_*", Certificate),
    ("/etc/**/*.{pem,crt,cer,key,p12,jks}", Certificate),
    ("/etc/{pam.d,security,sudoers.d,polkit-1}{,/**}", Auth),
    ("/usr/share/{pam,pam-configs,polkit-1}/**", Auth),
    ("/etc/{pam.conf,sudoers,sudo.conf,login.defs,securetty,shells,sudo_logsrvd.conf}", Auth),
    ("/etc/{passwd,group,shadow,gshadow,subuid,subgid}{,-}", NameService),
    (
        "/etc/{hosts,hosts.allow,hosts.deny,nsswitch.conf,resolv.conf,host.conf,gai.conf,services,protocols,networks,rpc,ethers,netgroup}",
        NameService,
    ),
    // Time, language, people.
    ("/etc/{cron.d,cron.hourly,cron.daily,cron.weekly,cron.monthly}{,/**}", Schedule),
    ("/etc/{crontab,anacrontab,logrotate.conf}", Schedule),
    ("/etc/logrotate.d{,/**}", Schedule),
    ("/var/spool/{cron,anacron}/**", Schedule),
    ("/etc/{localtime,timezone}", TimeZone),
    ("/usr/share/zoneinfo{,-icu}/**", TimeZone),
    ("/usr/{lib,share}/{locale,i18n}/**", Locale),
    ("/usr/share/{X11/locale,consolefonts,consoletrans,keymaps}/**", Locale),
    ("/etc/{locale.gen,locale.alias,locale.conf,default/locale}", Locale),
    (
        "/usr/share/{doc,doc-base,man,info,help,lintian,bug,gtk-doc,common-licenses}/**",
        Documentation,
    ),
    ("/usr/share/{bash-completion,zsh,fish}/**", Documentation),
    ("/etc/{motd,issue,issue.net,debian_version,os-release,lsb-release}", Documentation),
    ("/usr/lib/os-release", Documentation),
    // Records and what is derived.
    (
        "/var/lib/{dpkg,rpm,pacman,apt,aptitude,ucf,dnf,yum,python,systemd/deb-systemd-*}/**",
        PackageDatabase,
    ),
    ("/usr/lib/sysimage/**", PackageDatabase),
    ("/var/cache/**", Cache),
    ("/etc/ld.so.cache", Cache),
    ("/usr/lib/**/gconv/gconv-modules.cache", Cache),
    ("/usr/lib/systemd/catalog/**", Cache),
    ("/var/lib/systemd/catalog/**", Cache),
    ("/usr/share/{mime,icons,glib-2.0}/**/*.cache", Cache),
    // Links that choose one of several programs; who holds the program decides.
    ("/etc/alternatives/*.gz", Documentation),
    ("/etc/alternatives/*", Binary),
    // Content with the look of something else.
    ("/usr/share/*/{www,htdocs,html}/**", Content),
    ("/var/www/**", Content),
    ("/srv/**", Content),
    ("/etc/skel{,/**}", Content),
    ("/usr/lib/jvm/*/lib/modules", Module),
    ("/**/*.jar", Module),
];

/// Names and places that suggest a meaning when the content does not tell.
pub const LIKELY_CLASSES: &[(&str, Class)] = &[
    ("/usr/lib/**/{python*,perl,perl5,perl-base,ruby,node_modules,php}/**", Module),
    ("/usr/lib/{python*,perl,perl5,ruby,node_modules,php}/**", Module),
    ("/usr/share/{perl,perl5,python3,ruby,php,nodejs}/**", Module),
    ("/**/*.{so,so.*}", Library),
    ("/usr/{,local/}{bin,sbin}/*", Binary),
    ("/usr/{,local/}libexec/**", Binary),
    ("/{usr/lib,opt}/**/{bin,sbin}/*", Binary),
    ("/usr/lib/systemd/systemd*", Binary),
    ("/etc/**", Config),
    ("/usr/local/etc/**", Config),
    ("/usr/share/**", Content),
    ("/**/*.{py,pl,pm,rb,sh,js,mjs,cjs,lua,tcl}", Script),
];

/// Units never acted upon unasked: pattern on the unit's name, and why.
pub const HELD_UNITS: &[(&str, &str)] = &[
    ("dbus{,-broker}.{service,socket}", "every client would lose its connection"),
    ("systemd-logind.service", "sessions depend on it"),
    ("{display-manager,gdm,gdm3,sddm,lightdm,xdm}.service", "it would end graphical sessions"),
    (
        "{getty,serial-getty,container-getty,console-getty,autovt}{,@*}.service",
        "it would end logins",
    ),
    ("user@*.service", "it would end a user's services"),
    ("user-runtime-dir@*.service", "it would end a user's services"),
    ("*.scope", "nobody can start it again"),
    (
        "{NetworkManager,systemd-networkd,networking,network,wpa_supplicant,connman,dhcpcd,wicked}{,@*}.service",
        "the network could go away",
    ),
    ("ifup@*.service", "the network could go away"),
    (
        "{nftables,iptables,ip6tables,netfilter-persistent,ufw,firewalld,shorewall}.service",
        "the firewall could lock everyone out",
    ),
    ("{openvpn,wg-quick,strongswan,ipsec}{,-starter,@*}.service", "a tunnel could go away"),
    (
        "{docker,containerd,podman,crio,kubelet,libvirtd,virtqemud,lxc,lxd,lxc-net}{,@*}.service",
        "containers or machines depend on it",
    ),
    ("systemd-nspawn@*.service", "it is a container"),
    ("{rescue,emergency,initrd-*}.{service,target}", "it is for rescue"),
    (
        "{plymouth*,systemd-fsck*,systemd-remount-fs,systemd-shutdown*}.service",
        "it belongs to booting",
    ),
];

/// Units whose reload executes their program anew, so that a reload ends the use of replaced
/// code too. Measured for both; still to be proven each time.
pub const RELOAD_REEXECS: &[&str] = &["ssh.service", "sshd.service", "php*-fpm.service"];

/// Which units read which configuration, and what makes them read it again.
pub const CONFIG_RULES: &[(&str, &[&str], Effect)] = &[
    ("/etc/nginx/**", &["nginx.service"], Effect::Reload),
    ("/etc/{apache2,httpd}/**", &["apache2.service", "httpd.service"], Effect::Reload),
    ("/etc/php/*/{fpm,mods-available}/**", &["php*-fpm.service"], Effect::Reload),
    ("/etc/php/**", &[], Effect::Nothing),
    ("/etc/ssh/sshd_config{,.d/**}", &["ssh.service", "sshd.service"], Effect::Reload),
    ("/etc/ssh/ssh_host_*", &["ssh.service", "sshd.service"], Effect::Reload),
    ("/etc/ssh/**", &[], Effect::Nothing),
    ("/etc/postgresql/**", &["postgresql@*.service"], Effect::Reload),
    ("/etc/redis/**", &["redis-server{,@*}.service", "redis.service"], Effect::Reload),
    ("/etc/mysql/**", &["mariadb{,@*}.service", "mysql{,@*}.service"], Effect::Restart),
    ("/etc/my.cnf{,.d/**}", &["mariadb{,@*}.service", "mysqld.service"], Effect::Restart),
    ("/etc/postfix/**", &["postfix@*.service", "postfix.service"], Effect::Reload),
    ("/etc/aliases*", &[], Effect::Nothing),
    ("/etc/bind/**", &["named.service", "bind9.service"], Effect::Reload),
    ("/etc/haproxy/**", &["haproxy.service"], Effect::Reload),
    ("/etc/chrony{,/**,.conf}", &["chrony.service", "chronyd.service"], Effect::Restart),
    // A hang-up makes rsyslog reopen its files, not read its configuration.
    ("/etc/rsyslog.{conf,d/**}", &["rsyslog.service"], Effect::Restart),
    (
        "/{etc,usr/lib}/systemd/journald.conf{,.d/**}",
        &["systemd-journald.service"],
        Effect::Restart,
    ),
    ("/{etc,usr/lib}/systemd/logind.conf{,.d/**}", &["systemd-logind.service"], Effect::Restart),
    (
        "/{etc,usr/lib}/systemd/resolved.conf{,.d/**}",
        &["systemd-resolved.service"],
        Effect::Restart,
    ),
    (
        "/{etc,usr/lib}/systemd/timesyncd.conf{,.d/**}",
        &["systemd-timesyncd.service"],
        Effect::Restart,
    ),
    (
        "/{etc,usr/lib}/systemd/{network/**,networkd.conf*}",
        &["systemd-networkd.service"],
        Effect::Reload,
    ),
    ("/etc/network/**", &["networking.service"], Effect::Restart),
    ("/etc/nftables.conf", &["nftables.service"], Effect::Reload),
    ("/etc/docker/**", &["docker.service"], Effect::Reload),
    ("/etc/containerd/**", &["containerd.service"], Effect::Restart),
    // The bus watches these directories itself.
    ("/{etc,usr/share}/dbus-1/**", &[], Effect::Nothing),
    // Read by each command or login anew, by no service for long.
    (
        "/etc/{apt,dpkg,profile.d,bash_completion.d,terminfo,X11,vim,kernel}{,/**}",
        &[],
        Effect::Nothing,
    ),
    (
        "/etc/{update-motd.d,needrestart,gss,opt,binfmt.d,cloud,python3*,perl,emacs,groff,fonts}{,/**}",
        &[],
        Effect::Nothing,
    ),
    (
        "/etc/{profile,bash.bashrc,environment,inputrc,nanorc,wgetrc,curlrc,mke2fs.conf,e2scrub.conf}",
        &[],
        Effect::Nothing,
    ),
    (
        "/etc/{adduser.conf,deluser.conf,debconf.conf,ucf.conf,libaudit.conf,manpath.config,papersize,magic}",
        &[],
        Effect::Nothing,
    ),
    (
        "/etc/{rmt,.pwd.lock,xattr.conf,mailcap,mime.types,screenrc,tmux.conf,gitconfig}",
        &[],
        Effect::Nothing,
    ),
    ("/etc/{init.d,rc?.d,rcS.d,init}{,/**}", &[], Effect::Nothing),
];

/// Configuration that most units read through a library and none for itself: reported, nothing
/// is restarted for it.
pub const SHARED_CONFIG: &[&str] = &[
    "/etc/ssl/openssl.cnf",
    "/etc/gnutls/**",
    "/etc/ssl/certs/**",
    "/usr/share/ca-certificates/**",
];

/// Which tool turns which manager input into state.
pub const TOOLS: &[(&str, Tool)] = &[
    ("/{etc,usr/lib}/sysusers.d/*.conf", Tool::Sysusers),
    ("/{etc,usr/lib}/tmpfiles.d/*.conf", Tool::Tmpfiles),
    ("/{etc,usr/lib}/sysctl.d/*.conf", Tool::Sysctl),
    ("/etc/sysctl.conf", Tool::Sysctl),
    ("/{etc,usr/lib}/udev/**", Tool::Udev),
];

/// A tool of the service manager that an input file is for, in the order they must run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// Makes the system users that a file names.
    Sysusers,
    /// Makes the files and directories that a file names.
    Tmpfiles,
    /// Sets kernel parameters. All files are read again, because a later one may overrule.
    Sysctl,
    /// Has udev read its rules again; devices are not triggered.
    Udev,
}

impl Tool {
    /// The command for the input file `name` (its last component: the tools search their
    /// directories themselves, so a file that `/etc` overrules stays overruled).
    #[must_use]
    pub fn command(self, name: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Sysusers => &["systemd-sysusers", name],
            Self::Tmpfiles => &["systemd-tmpfiles", "--create", name],
            Self::Sysctl => &["/usr/lib/systemd/systemd-sysctl"],
            Self::Udev => &["udevadm", "control", "--reload"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}
