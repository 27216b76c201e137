// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {IERC165} from "@openzeppelin/contracts/utils/introspection/IERC165.sol";
import {AdapterFactoryStorage} from "./AdapterFactoryStorage.sol";
import {Certificates} from "./Certificates.sol";
import {IAdapterFactory} from "./IAdapterFactory.sol";

/// @title The reading half of AdapterFactory: what each view returns is said in IAdapterFactory.sol
abstract contract AdapterFactoryViews is AdapterFactoryStorage {
    int64 public constant override ACCURACY_UNKNOWN = type(int64).min;

    function contractVersion() external pure override returns (uint256) {
        return 1;
    }

    function supportsInterface(bytes4 interfaceId) external pure override returns (bool) {
        return interfaceId == type(IAdapterFactory).interfaceId || interfaceId == type(IERC165).interfaceId;
    }

    function baseModel(bytes32 baseModelId) public view override returns (BaseModel memory) {
        BaseModelRow storage row = _baseModels[baseModelId];
        if (row.place == 0) revert UnknownBaseModel(baseModelId);
        return BaseModel(baseModelId, row.name, row.uri, row.licence, row.sizeBytes, row.registrar);
    }

    function baseModelCount() external view override returns (uint256) {
        return _baseModelIds.length;
    }

    function baseModels(uint256 offset, uint256 limit) external view override returns (BaseModel[] memory page) {
        page = new BaseModel[](_pageLength(_baseModelIds.length, offset, limit));
        for (uint256 i = 0; i < page.length; ++i) page[i] = baseModel(_baseModelIds[offset + i]);
    }

    function adapter(bytes32 id) external view override returns (Adapter memory) {
        AdapterRow storage row = _existing(id);
        return Adapter(
            _baseModelIds[row.baseModelPlace - 1],
            row.name,
            row.creator,
            _ownerOf(id, row),
            _pendingOwners[id],
            row.rank,
            row.depth,
            row.versionCount,
            _mentorshipUntil(id, row)
        );
    }

    function adapterCount() external view override returns (uint256) {
        return _adapterIds.length;
    }

    function adapters(uint256 offset, uint256 limit) external view override returns (bytes32[] memory page) {
        page = new bytes32[](_pageLength(_adapterIds.length, offset, limit));
        for (uint256 i = 0; i < page.length; ++i) page[i] = _adapterIds[offset + i];
    }

    function lineage(bytes32 id) external view override returns (Lineage memory made) {
        AdapterRow storage row = _existing(id);
        if (row.weightA == 0) return made;
        ParentsRow storage parents = _parents[id];
        return Lineage(
            parents.a, parents.b, parents.versionA, parents.versionB, row.weightA, 100 - row.weightA
        );
    }

    function version(bytes32 id, uint256 number) public view override returns (Version memory) {
        AdapterRow storage row = _existing(id);
        if (number == 0 || number > row.versionCount) revert UnknownVersion(id, number, row.versionCount);
        VersionRow storage stored = _versions[id][number];
        address publisher = _publishers[id][number];
        return Version(
            uint32(number),
            number == 1 ? _parents[id].a : id,
            stored.weightsHash,
            stored.accuracyPpm,
            publisher == address(0) ? row.creator : publisher,
            stored.checkpoint,
            stored.codec,
            stored.sizeBytes,
            stored.blockNumber
        );
    }

    function latest(bytes32 id) external view override returns (Version memory) {
        uint256 count = _existing(id).versionCount;
        if (count == 0) revert NotYetCertified(id);
        return version(id, count);
    }

    function versionCount(bytes32 id) external view override returns (uint256) {
        return _existing(id).versionCount;
    }

    function history(bytes32 id, uint256 offset, uint256 limit) external view override returns (Version[] memory page) {
        page = new Version[](_pageLength(_existing(id).versionCount, offset, limit));
        for (uint256 i = 0; i < page.length; ++i) page[i] = version(id, offset + i + 1);
    }

    function cid(bytes32 id, uint256 number) external view override returns (bytes memory) {
        Version memory row = version(id, number);
        return abi.encodePacked(bytes1(0x01), row.codec, bytes2(0x1220), row.weightsHash);
    }

    function lastCheckpoint() external view override returns (Checkpoint memory) {
        return checkpoint(_lastCheckpoint);
    }

    function checkpoint(uint64 number) public view override returns (Checkpoint memory) {
        if (number > _lastCheckpoint) revert NotNextCheckpoint(number, _lastCheckpoint + 1);
        CheckpointRow storage row = _checkpoints[number];
        return Checkpoint(number, row.recordHash, row.blockNumber, row.timestamp, row.round, row.updates);
    }

    function validators() external view override returns (Validator[] memory) {
        return _validators;
    }

    function validatorSetHash() external view override returns (bytes32) {
        return _setHash;
    }

    function equivocation(address account) external view override returns (uint64) {
        return _equivocations[account];
    }

    function exclusionDueFrom() external view override returns (uint64) {
        return _exclusionDueFrom;
    }

    function commitmentDigest(Commitment calldata commitment) external view override returns (bytes32) {
        return Certificates.digest(commitment, commitment.updates, _setHash);
    }

    function eip712Domain()
        external
        view
        override
        returns (bytes1, string memory, string memory, uint256, address, bytes32, uint256[] memory)
    {
        return (0x0f, Certificates.NAME, Certificates.VERSION, block.chainid, address(this), 0, new uint256[](0));
    }

    function _pageLength(uint256 count, uint256 offset, uint256 limit) private pure returns (uint256) {
        if (offset >= count) return 0;
        uint256 left = count - offset;
        return limit < left ? limit : left;
    }
}
