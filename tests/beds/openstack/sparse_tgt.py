"""A Cinder volume driver for test machines: a volume is a sparse file, exported by Cinder's own tgt helper.

The control path is that of the LVM driver with `target_helper = tgtadm`, so that target names, CHAP pairs and
connection information are Cinder's and not ours.
"""

import os
import subprocess

from oslo_config import cfg
from oslo_utils import importutils
from oslo_utils import units

from cinder import exception
from cinder import interface
from cinder.volume import configuration
from cinder.volume import driver

OPTIONS = [
    cfg.StrOpt("sparse_directory", help="Where the files of the volumes are"),
    cfg.StrOpt("sparse_inject", help="Where a file named as an operation holds the name of the volume it shall fail for"),
    cfg.StrOpt("sparse_guest_portal", help="The portal as guests of QEMU's user network see it"),
]
cfg.CONF.register_opts(OPTIONS, group=configuration.SHARED_CONF_GROUP)


@interface.volumedriver
class SparseTgtDriver(driver.VolumeDriver):
    VERSION = "1"
    CI_WIKI_NAME = "None"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)
        helper = self.target_mapping[self.configuration.safe_get("target_helper")]
        self.target = importutils.import_object(
            helper, configuration=self.configuration, executor=self._execute
        )

    @classmethod
    def get_driver_options(cls):
        return OPTIONS

    def check_for_setup_error(self):
        os.makedirs(self.configuration.sparse_directory, exist_ok=True)

    def _update_volume_stats(self):
        self._stats = {
            "volume_backend_name": self.configuration.safe_get("volume_backend_name"),
            "vendor_name": "cinder-nbd",
            "driver_version": self.VERSION,
            "storage_protocol": self.target.protocol,
            "total_capacity_gb": 1000,
            "free_capacity_gb": 1000,
            "reserved_percentage": 0,
            "multiattach": True,
        }

    def _fail_if_asked(self, operation, volume):
        try:
            with open(os.path.join(self.configuration.sparse_inject, operation)) as file:
                name = file.read().strip()
        except FileNotFoundError:
            return
        if name == volume.display_name:
            raise exception.VolumeBackendAPIException(data=f"the test wants {operation} to fail")

    def local_path(self, volume):
        return os.path.join(self.configuration.sparse_directory, volume.name)

    def create_volume(self, volume):
        self._fail_if_asked("create_volume", volume)
        with open(self.local_path(volume), "xb") as file:
            file.truncate(volume.size * units.Gi)

    def delete_volume(self, volume):
        self._fail_if_asked("delete_volume", volume)
        try:
            os.unlink(self.local_path(volume))
        except FileNotFoundError:
            pass

    def _copy(self, source, volume, size):
        """Sparse as it was, and as large as the new one."""
        path = self.local_path(volume)
        subprocess.check_call(("cp", "--sparse=always", "--", source, path))
        with open(path, "r+b") as file:
            file.truncate(size * units.Gi)

    def create_snapshot(self, snapshot):
        self._fail_if_asked("create_snapshot", snapshot)
        self._copy(self.local_path(snapshot.volume), snapshot, snapshot.volume_size)

    def delete_snapshot(self, snapshot):
        self.delete_volume(snapshot)

    def create_volume_from_snapshot(self, volume, snapshot):
        self._copy(self.local_path(snapshot), volume, volume.size)

    def create_cloned_volume(self, volume, src_vref):
        self._copy(self.local_path(src_vref), volume, volume.size)

    def extend_volume(self, volume, new_size):
        with open(self.local_path(volume), "r+b") as file:
            file.truncate(new_size * units.Gi)
        self.target.extend_target(volume)

    def ensure_export(self, context, volume):
        return self.target.ensure_export(context, volume, self.local_path(volume))

    def create_export(self, context, volume, connector):
        made = self.target.create_export(context, volume, self.local_path(volume))
        return {"provider_location": made["location"], "provider_auth": made["auth"]}

    def remove_export(self, context, volume):
        self.target.remove_export(context, volume)

    def validate_connector(self, connector):
        return self.target.validate_connector(connector)

    def initialize_connection(self, volume, connector):
        self._fail_if_asked("initialize_connection", volume)
        information = self.target.initialize_connection(volume, connector)
        if connector.get("ip", "").startswith("10.0.2."):
            information["data"]["target_portal"] = self.configuration.sparse_guest_portal
        return information

    def terminate_connection(self, volume, connector, **kwargs):
        self._fail_if_asked("terminate_connection", volume)
        if sum(row.attach_status == "attached" for row in volume.volume_attachment) > 1:
            # As the LVM driver: others still use the export.
            return True
        self.target.terminate_connection(volume, connector, **kwargs)
