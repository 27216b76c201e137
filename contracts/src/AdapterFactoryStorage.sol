// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {IAdapterFactory} from "./IAdapterFactory.sol";

/// @title What AdapterFactory keeps, and where
/// @dev `_setHash`, `_validators`, `_checkpoints[0]` and base models are written as genesis storage
///      (citrate_node/chain/genesis.py) instead of by a constructor. So the order of the variables below is
///      frozen: tests/contracts compares it with what networks were started with.
abstract contract AdapterFactoryStorage is IAdapterFactory {
    /// @dev In the adapter's row, which a commit reads anyway. Only an ending one needs `_mentorshipEnds`.
    enum Mentorship {
        Never,
        Open,
        Ending
    }

    struct BaseModelRow {
        address registrar;
        uint64 sizeBytes;
        uint32 place; // in _baseModelIds, from 1; 0 where the id is unknown
        string name;
        string uri;
        string licence;
    }

    struct AdapterRow {
        address creator; // zero where the id is unknown
        uint32 versionCount;
        uint32 baseModelPlace; // an index instead of the 32 bytes keeps the row in one word
        uint8 rank;
        uint8 depth;
        uint8 weightA; // 0 unless it is a composition
        Mentorship mentorship;
        string name;
    }

    struct ParentsRow {
        bytes32 a;
        bytes32 b;
        uint32 versionA;
        uint32 versionB;
    }

    struct VersionRow {
        bytes32 weightsHash;
        uint64 checkpoint;
        uint64 sizeBytes;
        int64 accuracyPpm;
        uint48 blockNumber; // where to look for weights that came in calldata
        uint8 codec;
    }

    struct CheckpointRow {
        bytes32 recordHash;
        uint64 blockNumber;
        uint64 timestamp;
        uint32 round;
        uint16 updates;
    }

    uint64 internal _lastCheckpoint;
    uint64 internal _exclusionDueFrom;
    bytes32 internal _setHash;
    Validator[] internal _validators;
    mapping(uint64 number => CheckpointRow) internal _checkpoints;
    bytes32[] internal _baseModelIds;
    mapping(bytes32 baseModelId => BaseModelRow) internal _baseModels;
    bytes32[] internal _adapterIds;
    mapping(bytes32 adapterId => AdapterRow) internal _adapters;
    mapping(bytes32 adapterId => ParentsRow) internal _parents;
    mapping(bytes32 adapterId => mapping(uint256 number => VersionRow)) internal _versions;
    mapping(bytes32 adapterId => mapping(uint256 number => address)) internal _publishers; // unless the creator
    mapping(bytes32 adapterId => address) internal _newOwners; // zero while the creator is the owner
    mapping(bytes32 adapterId => address) internal _pendingOwners;
    mapping(bytes32 adapterId => uint64) internal _mentorshipEnds;
    mapping(address account => uint64) internal _equivocations;

    function _existing(bytes32 id) internal view returns (AdapterRow storage row) {
        row = _adapters[id];
        if (row.creator == address(0)) revert UnknownAdapter(id);
    }

    function _ownerOf(bytes32 id, AdapterRow storage row) internal view returns (address owner) {
        owner = _newOwners[id];
        if (owner == address(0)) owner = row.creator;
    }

    /// @dev Last checkpoint that may add versions to the adapter, as the interface tells it.
    function _mentorshipUntil(bytes32 id, AdapterRow storage row) internal view returns (uint64) {
        Mentorship state = row.mentorship;
        if (state == Mentorship.Open) return type(uint64).max;
        return state == Mentorship.Ending ? _mentorshipEnds[id] : 0;
    }
}
