"""The configuration files of all services, from the bed's paths and ports."""

import base64
import json
import os
import secrets

from bed import ADDRESS, GUEST_VIEW

DIRECTORIES = (
    "bin", "etc", "fernet", "credential", "home", "inject", "locks", "log", "python", "rabbit", "targets", "tmp", "volumes",
)


def write(path, text, mode=0o600):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
    os.chmod(path, mode)


def passwords(bed):
    """Made once for a state directory: nothing in the repository opens anything."""
    path = bed.path("passwords.json")
    if not os.path.exists(path):
        names = ("admin", "cinder", "demo", "credential", "fixed_key")
        write(path, json.dumps({name: secrets.token_hex(32 if name == "fixed_key" else 12) for name in names}))
    with open(path) as file:
        return json.load(file)


def configure(bed):
    for name in DIRECTORIES:
        os.makedirs(bed.path(name), mode=0o755, exist_ok=True)
    words = passwords(bed)
    keys(bed)
    tools(bed)
    write(bed.path("etc/keystone.conf"), keystone(bed))
    write(bed.path("etc/cinder.conf"), cinder(bed, words))
    write(bed.path("rabbit/rabbitmq.conf"), rabbit(bed))
    write(bed.path("rabbit/enabled_plugins"), "[].\n")
    write(bed.path("rabbit/env.conf"), "")
    driver = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sparse_tgt.py")
    with open(driver) as source:
        write(bed.path("python/sparse_tgt.py"), source.read())
    return words


def keys(bed):
    """Fernet keys: what two runs of keystone-manage would make in six seconds."""
    for directory in ("fernet", "credential"):
        os.chmod(bed.path(directory), 0o700)
        for name in ("0", "1"):
            path = bed.path(directory, name)
            if not os.path.exists(path):
                write(path, base64.urlsafe_b64encode(os.urandom(32)).decode())


def tools(bed):
    """Cinder calls tgtadm and tgt-admin by their bare names; first in its PATH they speak to our tgtd."""
    write(bed.path("etc/targets.conf"), f"include {bed.path('targets')}/*\n")
    control = f"-C {bed.tgt_control}"
    for name, options in (("tgtadm", control), ("tgt-admin", f"{control} -c {bed.path('etc/targets.conf')}")):
        write(bed.path("bin", name), f'#!/bin/sh\nexec /usr/sbin/{name} {options} "$@"\n', 0o755)


def database(bed, name):
    return f"mysql+pymysql://root@localhost/{name}?unix_socket={bed.path('mariadb.sock')}&charset=utf8mb4"


def keystone(bed):
    return f"""[DEFAULT]
use_stderr = true
[database]
connection = {database(bed, "keystone")}
[token]
provider = fernet
expiration = 3600
[fernet_tokens]
key_repository = {bed.path("fernet")}
[fernet_receipts]
key_repository = {bed.path("fernet")}
[credential]
key_repository = {bed.path("credential")}
[identity]
# The least that bcrypt takes: tests log in often.
password_hash_rounds = 4
"""


def cinder(bed, words):
    return f"""[DEFAULT]
state_path = {bed.state}
host = bed
my_ip = {ADDRESS}
use_stderr = true
auth_strategy = keystone
api_paste_config = {paste_file()}
resource_query_filters_file = /etc/cinder/resource_filters.json
transport_url = rabbit://guest:guest@{ADDRESS}:{bed.ports["amqp"]}/
enabled_backends = sparse
default_volume_type = sparse
# Pages of two, so that lists are really paged in the tests.
osapi_max_limit = 2
# How long the API waits for a cinder-volume that does not answer.
rpc_response_timeout = 10
quota_volumes = 100
quota_gigabytes = 1000
[database]
connection = {database(bed, "cinder")}
[oslo_concurrency]
lock_path = {bed.path("locks")}
[coordination]
backend_url = file://{bed.path("locks")}
[key_manager]
# One key for all: types with encryption need some key manager.
backend = cinder.keymgr.conf_key_mgr.ConfKeyManager
fixed_key = {words["fixed_key"]}
[cinder_sys_admin]
# The daemons are root already; without this they want sudo and rootwrap.
helper_command = privsep-helper --config-file {bed.path("etc/cinder.conf")}
[keystone_authtoken]
# Credentials with access rules name it so.
service_type = block-storage
www_authenticate_uri = {bed.url("keystone")}
auth_url = {bed.url("keystone")}
auth_type = password
username = cinder
password = {words["cinder"]}
user_domain_id = default
project_name = service
project_domain_id = default
# A revoked token is one at once: tests wait for nothing.
token_cache_time = -1
[sparse]
volume_driver = sparse_tgt.SparseTgtDriver
volume_backend_name = sparse
volumes_dir = {bed.path("targets")}
target_helper = tgtadm
target_protocol = iscsi
target_prefix = iqn.2010-10.org.openstack:
target_ip_address = {ADDRESS}
target_port = {bed.ports["iscsi"]}
sparse_directory = {bed.path("volumes")}
sparse_inject = {bed.path("inject")}
sparse_guest_portal = {GUEST_VIEW}:{bed.ports["iscsi"]}
"""


def paste_file():
    candidates = ("/usr/share/cinder-common/api-paste.ini", "/etc/cinder/api-paste.ini")
    return next((path for path in candidates if os.path.exists(path)), candidates[0])


def rabbit(bed):
    return f"""listeners.tcp.1 = {ADDRESS}:{bed.ports["amqp"]}
vm_memory_high_watermark.relative = 0.2
disk_free_limit.absolute = 50MB
log.file = false
log.console = true
log.console.level = warning
"""
